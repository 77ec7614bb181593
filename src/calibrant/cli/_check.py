"""`calibrant check`: is the posterior of a run any good?"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrant import checks
from calibrant._calibration import Calibration
from calibrant._config import ConfigError
from calibrant._files import atomic_path, write_text
from calibrant._problem import Problem
from calibrant._progress import NoProgress, TerminalProgress
from calibrant._progress import table as progress_table
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
from calibrant.cli._run import read_run, report_again
from calibrant.cli._scratch import own
from calibrant.inference import GVI, auto_devices

_out = Console()


def check_command(
    run: Annotated[Path, typer.Argument(help="a run directory")],
    datasets: Annotated[int | None, typer.Option(help="refits: 50 by default, 25 with --fast", min=10)] = None,
    fast: Annotated[bool, typer.Option("--fast", help="half the data sets: a first look")] = False,
    prior: Annotated[bool, typer.Option("--prior", help="truths from the prior, each fitted as the run was")] = False,
    updates: Annotated[
        int | None, typer.Option(help="of each refit: 50 by default, with --prior those of the run", min=1)
    ] = None,
    at_once: Annotated[int, typer.Option(help="refits side by side; memory grows with it", min=1)] = 4,
    choose_weight: Annotated[bool, typer.Option("--choose-weight", help="also search the weight that covers")] = False,
    nominal: Annotated[float, typer.Option(help="with --choose-weight: probability of the intervals")] = 0.9,
    seed: Annotated[int, typer.Option(help="equal seeds give equal bits", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="directory of check.json and pictures; the run by default")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    devices: DevicesOption = None,
    processes: ProcessesOption = None,
    process: ProcessOption = None,
    coordinator: CoordinatorOption = None,
    join: JoinOption = False,
) -> None:
    """Check the posterior of a run: calibration by refits to synthetic data, predictive checks, importance weights,
    identifiability, sensitivities. Writes check.json, pictures, and a section of the run's report."""
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out is the directory of check.json and pictures.")
    if not 0 < nominal < 1:
        raise ConfigError(f"--nominal is a probability between 0 and 1, got {nominal}.")
    wanted = Where(devices, processes, process, coordinator, join).wanted()
    mesh, (problem, calibration, method) = build_on(
        wanted, lambda: _read(run), lambda built: auto_devices(built[0], at_once * built[2].runs_an_update(built[0], 1))
    )
    say_devices(mesh, quiet)
    near = checks.NearData() if updates is None else checks.NearData(updates=updates)
    where = checks.PriorDraws(updates) if prior else near
    folder = own(run if out is None else out)
    with others_may_end(), on(mesh):
        result = checks.check(
            problem,
            calibration,
            method,
            where=where,
            data_sets=datasets,
            at_once=at_once,
            fast=fast,
            seed=seed,
            progress=not quiet,
        )
        result.save(folder)
        _print(result)
        if choose_weight:
            _search(result, problem, calibration, method, where, at_once, seed, nominal, folder, quiet)
        _out.print(f"check: {folder / 'check.json'}", soft_wrap=True)
        if out is None or out.resolve() == run.resolve():
            _out.print(f"report: {report_again(run)}", soft_wrap=True)


def _read(run: Path) -> tuple[Problem, Calibration, GVI]:
    _, config, _, problem, calibration = read_run(run)
    method = config.method.build()
    if not isinstance(method, GVI):
        raise ConfigError(f"calibrant check refits by gvi, and {run} was made by {calibration.method}.")
    return problem, calibration, method


def _print(result: checks.Check) -> None:
    table = Table("parameter", "verdict", "width / right", "shift, own sd", "in 50%", "in 90%", "contraction")
    for v in result.calibration.verdicts:
        low, high = v.width.factor_interval
        left, right = v.width.shift_interval
        table.add_row(
            v.name,
            v.word,
            f"{v.width.factor:.2f} ({low:.2f} to {high:.2f})",
            f"{v.width.shift:+.2f} ({left:+.2f} to {right:+.2f})",
            *(f"{v.coverage[level][0]:.0%}" for level in (0.5, 0.9)),
            f"{v.contraction:.0%}",
        )
    _out.print(table)
    for sentence in result.sentences():
        _out.print(f"- {sentence}", soft_wrap=True)


def _search(result, problem, calibration, method, where, at_once, seed, nominal, folder, quiet) -> None:
    asked, most = result.refits.asked, 8
    refitter = checks.Refitter(
        problem, calibration.posterior, method, where=where, data_sets=asked, at_once=at_once, seed=seed
    )
    progress = NoProgress() if quiet else TerminalProgress(most * asked, "Searching the weight", "refits at most")
    with progress:
        search = checks.choose_weight(refitter, nominal=nominal, steps=most, progress=progress)
    columns = ("weight", "coverage", *search.names)
    _out.print(progress_table("Search of the weight", columns, [s.row(search.names) for s in search.steps]))
    _out.print(f"- {search.sentence()}", soft_wrap=True)
    with atomic_path(folder / "check-weight.png") as part:
        checks.weight_figure(search).savefig(part, format="png", dpi=140)
    about = {**result.describe(), "weight_search": search.describe()}
    about["sentences"] = [*about["sentences"], search.sentence()]
    write_text(folder / "check.json", json.dumps(about, indent=1) + "\n")
