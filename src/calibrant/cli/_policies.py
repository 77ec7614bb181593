"""What would have happened under another calendar."""

import csv
import io
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from calibrant._config import ConfigError, build_model
from calibrant._figures import BLUE, RED, grid, legend
from calibrant._files import atomic_path, write_text
from calibrant._programs import compiled
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.cli._run import read_run
from calibrant.models import June

_QUANTILES = (0.05, 0.5, 0.95)


def compare(run: Path, policy: Path, *, draws: int, seed: int, out: Path | None) -> Path:
    """Simulate draws of a run's posterior under its own policies and under those of a file, with common numbers.

    Writes a CSV of quantiles (as simulated, otherwise, and of their difference, by stream and date) and a figure beside
    it, `policy.csv` and `policy.png` in the run directory by default.

    **Raises:** `ConfigError`.
    """
    if not run.is_dir():
        raise ConfigError(f"--policy needs a run directory, and {run} is none.")
    try:
        tables = tomllib.loads(policy.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{policy} cannot be read ({error}).") from error
    if set(tables) != {"policies"} or not isinstance(tables["policies"], list):
        raise ConfigError(f"{policy} holds [[policies]] tables and nothing else.")
    _, config, _, problem, calibration = read_run(run)
    model = problem.model
    if not isinstance(model, June):
        raise ConfigError(f"--policy is for runs of JUNE; {run} is of {type(model).__name__}.")
    options = {**config.model.options, "policies": tables["policies"], "factors": list(model.free_factors)}
    other = build_model(config.model.name, options, Path.cwd())
    values = calibration.posterior.sample(seed, draws)
    words = seeds(seed, draws, stream=11)

    @compiled
    def outcomes(inputs: Any) -> Any:
        def one(x):
            value, words = x
            return simulate(model, problem.with_values(value), seed=words, inputs=inputs).outputs

        return jax.lax.map(one, (values, words))

    was, would = (jax.tree.map(np.asarray, outcomes(m.default_inputs)) for m in (model, other))
    path = run / "policy.csv" if out is None else out
    write_text(path, _table(was, would, model.dates))
    with atomic_path(path.with_suffix(".png")) as part:
        _figure(was, would, model.dates, policy.stem).savefig(part, format="png", dpi=130)
    return path


def _series(was: Any) -> list[str]:
    return [name for name, x in was.items() if x.ndim == 2]


def _table(was: Any, would: Any, dates: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    kinds = ("as it was", "otherwise", "difference")
    writer.writerow(["date", "stream", *(f"{kind} {q:.0%}" for kind in kinds for q in _QUANTILES)])
    for name in _series(was):
        a, b = was[name], would[name]
        quantiles = [np.quantile(x, _QUANTILES, axis=0) for x in (a, b, b - a)]
        for t, date in enumerate(dates):
            writer.writerow([date, name, *(f"{q[i, t]:.6g}" for q in quantiles for i in range(3))])
    return buffer.getvalue()


def _figure(was: Any, would: Any, dates: Any, title: str) -> Figure:
    names = _series(was)
    figure, axes = grid(len(names), width=5.5, height=3.0, columns=2)
    for axis, name in zip(axes, names, strict=True):
        for x, label, color in ((was[name], "as it was", BLUE), (would[name], title, RED)):
            low, middle, high = np.quantile(x, _QUANTILES, axis=0)
            axis.fill_between(dates, low, high, color=color, alpha=0.2, lw=0)
            axis.plot(dates, middle, color=color, lw=1.4, label=label)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.xaxis.set_major_formatter(_short_dates(axis))
    legend(figure, axes)
    return figure


def _short_dates(axis: Any) -> Any:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    return ConciseDateFormatter(locator)
