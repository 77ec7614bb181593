"""`calibrant gradients`: are they any good?"""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrant import diagnostics
from calibrant._config import ConfigError
from calibrant._files import atomic_path, write_text
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant.cli._configured import configured
from calibrant.cli._mesh import (
    CoordinatorOption,
    DevicesOption,
    JoinOption,
    ProcessesOption,
    ProcessOption,
    Where,
    build_on,
    on,
    others_may_end,
    say_devices,
)
from calibrant.cli._run import names_run, read_run
from calibrant.cli._scratch import own
from calibrant.inference import GVI, AbstractMethod, auto_devices
from calibrant.posteriors import Posterior

_out = Console()


def gradients_command(
    config: Annotated[str, typer.Argument(help="a bundled configuration, a TOML file, or a run directory")],
    points: Annotated[int, typer.Option(help="draws of the start, or of a run's posterior, to look at", min=2)] = 4,
    repeats: Annotated[
        int | None, typer.Option(help="gradients of each kind at each point; by replicates by default", min=4)
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[float | None, typer.Option(help="JUNE: people of the built town")] = None,
    scale: Annotated[float | None, typer.Option(help="JUNE: of London's population, up to 1")] = None,
    data: Annotated[Path | None, typer.Option(help="directory of the data file")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write, with the numbers beside it in JSON")] = None,
    devices: DevicesOption = None,
    processes: ProcessesOption = None,
    process: ProcessOption = None,
    coordinator: CoordinatorOption = None,
    join: JoinOption = False,
) -> None:
    """Ask, before a calibration, whether its gradients are any good, and what to change."""
    if out is not None and out.is_dir():
        raise ConfigError(f"{out} is a directory; --out is the PNG to write.")
    if out is not None and out.suffix == ".json":
        raise ConfigError(f"--out is the PNG to write, and the numbers go beside it in JSON: give {out.stem}.png.")
    machine, asked = Where(devices, processes, process, coordinator, join), None
    if names_run(config):
        name, made = Path(config).name, lambda: _of_run(Path(config))
    else:
        settings, directory, _ = configured(config, updates=None, size=size, scale=scale, data=data)
        name, made, asked = Path(config).stem, lambda: (*settings.build(directory), None), settings.devices
    rows = points * (32 if repeats is None else repeats)
    mesh, (problem, prior, method, posterior) = build_on(
        machine.wanted(asked), made, lambda built: auto_devices(built[0], rows)
    )
    if not isinstance(method, GVI):
        raise ConfigError(f"calibrant gradients looks at those of gvi, and the method of {config} is another.")
    repeats = diagnostics.default_repeats(method) if repeats is None else repeats
    _out.print(f"{name}: gradients at {points} points, {repeats} of each kind")
    say_devices(mesh)
    with others_may_end(), on(mesh):
        health = diagnostics.gradients(
            problem, prior, method, posterior=posterior, points=points, repeats=repeats, seed=seed
        )
    table = Table("gradient", "cosine", "length", "noise²", "runs", "progress")
    candidates = diagnostics.summary(health)
    furthest = max(max(row["progress"] for row in candidates), 1e-30)
    for row in candidates:
        numbers = [row["alignment"], row["length"], row["noise"], row["forward_runs"], row["progress"] / furthest]
        table.add_row(row["candidate"], *(f"{x:.3g}" if math.isfinite(x) else "all noise" for x in numbers))
    _out.print(table)
    _out.print(
        "cosine: with central differences, of clipped gradients; length: the median one's beside theirs; noise²: over "
        "signal², of one clipped gradient; runs: forward runs that take as long; progress: how far "
        "updates go the way of the differences for the same work, of the furthest"
    )
    parameters = Table(
        "parameter", "mean", "bias", "variance", "S/N", "ratio", title="as configured", title_justify="left"
    )
    for row in health.by_parameter(health.configured):
        mean, bias, ratio = (_plus_minus(row[key], row[f"{key}_error"]) for key in ("mean", "bias", "ratio"))
        numbers = (f"{row['variance']:.2g}", f"{row['signal_to_noise']:.2g}")
        parameters.add_row(row["parameter"], mean, bias, *numbers, ratio)
    _out.print(parameters)
    _out.print(
        "of gradients as they are, averaged over the points, in coordinates of the prior; bias: the mean less that of "
        "the differences; S/N: signal to noise of one gradient; ratio: of the gradient to the differences"
    )
    advice = diagnostics.advise(health)
    for sentence in advice:
        _out.print(f"- {sentence}", soft_wrap=True)
    written = own(Path(f"{name}-gradients.png") if out is None else out)
    with atomic_path(written) as part:
        diagnostics.gradients_figure(health).savefig(part, dpi=150, format="png")
    numbers_file = written.with_suffix(".json")
    write_text(
        numbers_file, json.dumps({"advice": advice} | diagnostics.described(health), indent=1, allow_nan=False) + "\n"
    )
    _out.print(f"picture: {written}, numbers: {numbers_file}", soft_wrap=True)


def _plus_minus(x: float, error: float) -> str:
    return f"{x:.2g} ± {error:.1g}" if math.isfinite(x) else "differences are all noise"


def _of_run(folder: Path) -> tuple[Problem, Prior, AbstractMethod, Posterior]:
    _, settings, _, problem, calibration = read_run(folder)
    return problem, calibration.prior, settings.method.build(), calibration.posterior
