"""Several methods on one problem, with the same number of simulations each."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from calibrant._autodiff import ReverseMode
from calibrant._calibrate import calibrate
from calibrant._calibration import Calibration, versions
from calibrant._config import METHODS, Config, ConfigError, as_other
from calibrant._files import atomic_path, write_text
from calibrant._horizon import FullHorizon
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._progress import TerminalProgress
from calibrant._randomness import as_seed
from calibrant.estimators import FiniteDifferences, Pathwise
from calibrant.inference import GVI, AbstractMethod, Corrected, FlowScore, Result
from calibrant.inference._losses import Differentiation, evaluate_posterior

_LEVEL = (0.05, 0.95)
#: Draws of each posterior that its loss is taken of, on fresh seeds: the same for every method.
_DRAWS = 400
_STREAM = 3
_COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7c3aed", "#6b7280")
_COLUMNS = (
    "method", "dataset", "loss", "loss_standard_error", "objective", "kl", "covered", "truths", "simulations",
    "gradients", "failed", "seconds", "result",
)  # fmt: skip


def compare_methods(
    config: Config,
    directory: Path,
    names: Sequence[str],
    *,
    budget: int,
    datasets: int,
    seed: int,
    progress: bool,
) -> Iterator[list[dict[str, Any]]]:
    """One row for each method and data set: all rows so far, each time that there is one more.

    Simulations that a method chooses by count as its own: GVI's evaluations are in its budget. The loss is the expected
    loss at draws of the posterior on fresh seeds, with its standard error over draws; the objective adds `w` KL, where
    the posterior has a density. `covered`, of `truths`: parameters whose true value is within their 90% interval.

    **Raises:** `ConfigError` for what cannot be compared, before anything runs.
    """
    names = [name.strip() for name in names]
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"--methods: there is no method '{name}'; there are {', '.join(METHODS)}.")
    if len(set(names)) != len(names):
        raise ConfigError("--methods: a method is named twice.")
    if datasets > 1 and config.data.synthetic is None:
        raise ConfigError("--datasets needs synthetic data, which this configuration does not have; leave it out.")
    problem, prior, _ = config.build(directory)
    methods: dict[str, AbstractMethod] = {}
    given = {name: as_other(config.method, name, ensemble=not problem.loss.per_simulation) for name in names}
    for name in names:
        try:
            made = given[name].build()
            made.check(problem, prior)
            methods[name] = made.with_budget(problem, prior, budget)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    replicates = max(getattr(config.method, "replicates", 1), problem.loss.min_replicates)
    rows = []
    for k in range(datasets):
        if k > 0 and config.data.synthetic is not None:
            synthetic = config.data.synthetic.model_copy(update={"seed": config.data.synthetic.seed + 1})
            config = config.model_copy(update={"data": config.data.model_copy(update={"synthetic": synthetic})})
            problem, _, _ = config.build(directory)
        truth = _truth(config, problem, prior)
        for name, method in methods.items():
            title = name + (f", data set {k + 1} of {datasets}" if datasets > 1 else "")
            result = calibrate(
                problem,
                prior,
                method=method,
                seed=seed + k,
                progress=TerminalProgress(method.max_updates, title) if progress else False,
                check_gradients=False,
                throw=False,
            )
            rows.append({"method": name, "dataset": k, **_row(problem, method, result, truth, replicates, seed + k)})
            yield rows
            if result.result is Result.INTERRUPTED:
                return


def _truth(config: Config, problem: Problem, prior: Prior) -> dict[str, float]:
    """Of synthetic data, the true value of every number that is free; what belongs to the loss has none."""
    if config.data.synthetic is None:
        return {}
    params = problem.params.replace(config.data.synthetic.values)
    out: dict[str, float] = {}
    for name in prior.names:
        if name in problem.parameter_names:
            value = np.asarray(getattr(params, name))
            out |= {name + "".join(f"[{i}]" for i in ix): float(value[ix]) for ix in np.ndindex(value.shape)}
    return out


def _row(
    problem: Problem, method: Any, result: Calibration, truth: dict[str, float], replicates: int, seed: int
) -> dict[str, Any]:
    how = Differentiation(Pathwise(), ReverseMode(), FullHorizon(), method.simulations_at_once)
    weight = float(getattr(method, "weight", math.nan))
    fresh = evaluate_posterior(how, problem, result.posterior, as_seed(seed), _STREAM, _DRAWS, replicates, weight)
    intervals = {}
    for name, q in result.quantiles((*_LEVEL, 0.5)).items():
        intervals |= {name + "".join(f"[{i}]" for i in ix): q[:, *ix].tolist() for ix in np.ndindex(q.shape[1:])}
    inside = [intervals[name][0] <= value <= intervals[name][1] for name, value in truth.items()]
    return {
        "loss": _number(fresh.loss),
        "loss_standard_error": _number(fresh.standard_error),
        "objective": _number(fresh.objective),
        "kl": _number(fresh.kl),
        "covered": sum(inside) if inside else None,
        "truths": len(inside) if inside else None,
        "simulations": result.n_simulations + len(result.history) * method.runs_an_evaluation,
        "gradients": _gradients(method, result),
        "failed": result.n_failed,
        "seconds": round(result.timings["total"], 2),
        "result": result.result.value,
        "successful": result.result.successful,
        "reason": result.reason,
        "intervals": intervals,
        "truth": truth,
        "diagnostics": result.diagnostics,
        "updates": len(result.updates["loss"]),
    }


def _gradients(method: AbstractMethod, result: Calibration) -> int:
    """How many simulations were differentiated."""
    if "gradients" in result.updates:
        return int(np.sum(result.updates["gradients"]))
    if not isinstance(method, GVI):
        return result.n_simulations
    if isinstance(method.estimator, Corrected):
        return len(result.updates["loss"]) * method.simulations * method.replicates
    return 0 if isinstance(method.estimator, (FlowScore, FiniteDifferences)) else result.n_simulations


def _number(x: Any) -> float | None:
    return float(x) if math.isfinite(float(x)) else None


def write_comparison(
    out: Path, name: str, rows: list[dict[str, Any]], *, text: str, budget: int, seed: int
) -> tuple[Table, Path]:
    """Write `comparison.csv`, `.json` and `.png` in a directory, each whole or not at all.

    **Returns:** the table for a terminal, and the path of the CSV.
    """
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "comparison.csv", buffer.getvalue())
    about = {"name": name, "budget": budget, "seed": seed, "versions": versions(), "config": text, "rows": rows}
    write_text(out / "comparison.json", json.dumps(about, indent=1) + "\n")
    with atomic_path(out / "comparison.png") as part:
        comparison_figure(rows, name, budget).savefig(part, format="png", dpi=140)
    return _table(rows, f"{name}, {budget:,} simulations each"), out / "comparison.csv"


def _by_method(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault(row["method"], []).append(row)
    return out


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    columns = ("method", "loss", "objective", "in 90%", "simulations", "gradients", "seconds")
    table = Table(*columns, title=title, title_justify="left")
    for name, own in _by_method(rows).items():
        count = len(own)

        def mean(key: str, own: list = own) -> float:
            values = [row[key] for row in own if row[key] is not None]
            return float(np.mean(values)) if values else math.nan

        # Of one data set the error is that of the simulations; of many, that of the mean over them.
        losses = [row["loss"] for row in own if row["loss"] is not None]
        error = (
            float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else mean("loss_standard_error")
        )
        truths = sum(row["truths"] or 0 for row in own)
        covered = f"{sum(row['covered'] or 0 for row in own)} of {truths}" if truths else ""
        table.add_row(
            name,
            f"{mean('loss'):.4g} ± {error:.2g}",
            "" if math.isnan(mean("objective")) else f"{mean('objective'):.4g}",
            covered,
            f"{sum(row['simulations'] for row in own) / count:,.0f}",
            f"{sum(row['gradients'] for row in own) / count:,.0f}",
            f"{mean('seconds'):.1f}",
        )
    return table


def comparison_figure(rows: list[dict[str, Any]], name: str, budget: int) -> Figure:
    """Loss, simulations and seconds by method, and the 90% intervals of every parameter on the first data set."""
    methods = _by_method(rows)
    first = {m: own[0] for m, own in methods.items()}
    parameters = list(next(iter(first.values()))["intervals"])
    columns = 3
    lines = 1 + -(-len(parameters) // columns)
    figure = Figure(figsize=(10.5, 0.9 + (0.5 + 0.32 * len(methods)) * lines * 1.25), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes:
        axis.set_visible(False)
    heights = {m: -i for i, m in enumerate(methods)}
    colours = {m: _COLOURS[i % len(_COLOURS)] for i, m in enumerate(methods)}
    for axis, (key, label) in zip(
        axes,
        (("loss", "expected loss, fresh seeds"), ("simulations", "simulations"), ("seconds", "seconds")),
        strict=False,
    ):
        for m, own in methods.items():
            values = [row[key] if row[key] is not None else math.nan for row in own]
            errors = [2 * (row["loss_standard_error"] or 0) for row in own] if key == "loss" else None
            spread = np.linspace(0.18, -0.18, len(own)) if len(own) > 1 else np.zeros(1)
            at = heights[m] + spread
            axis.errorbar(values, at, xerr=errors, fmt="o", ms=4, color=colours[m], lw=1.2)
        if key != "loss":
            axis.set_xlim(0, 1.08 * axis.get_xlim()[1])
        _dress(axis, heights, label)
    for axis, parameter in zip(axes[columns:], parameters, strict=False):
        for m, row in first.items():
            low, high, middle = row["intervals"][parameter]
            axis.plot([low, high], [heights[m]] * 2, color=colours[m], lw=2.5, solid_capstyle="butt")
            axis.plot([middle], [heights[m]], "o", ms=5, color=colours[m])
        if parameter in next(iter(first.values()))["truth"]:
            axis.axvline(next(iter(first.values()))["truth"][parameter], color="#22272e", lw=1.2, ls="--")
        _dress(axis, heights, f"{parameter}, 90% interval")
    known = any(row["truth"] for row in rows)
    figure.suptitle(
        f"{name}: {budget:,} simulations each" + (" (dashed: the truth)" if known else ""),
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure


def _dress(axis: Any, heights: dict[str, int], title: str) -> None:
    axis.set_visible(True)
    axis.set_title(title, fontsize=9)
    axis.set_yticks(list(heights.values()), list(heights), fontsize=8)
    axis.set_ylim(min(heights.values()) - 0.6, 0.6)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.spines[["top", "right"]].set_visible(False)
