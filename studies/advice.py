"""Does following the advice of `calibrant gradients` improve the calibration that it was asked about?

Configurations that a user might begin with, on data of seeds that the advice was not made on. Each is measured, fitted
as configured, as advised, and by central differences, with as many updates of each as make equal work: that of
simulations without a derivative, by the costs that were measured. `brock-hommes, bundled` is the bundled configuration
with other data. Objectives are at fresh draws.

    python studies/advice.py [--tiny | --quick] [--cases "sir" ...]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Case, case
from cells import Cells, fitted, method, wrong_but_confident
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._config import bundled_configs, parse_config
from calibrant._files import atomic_path
from calibrant.diagnostics import GradientHealth, advise, advised, gradients

E = cal.estimators
BUNDLED = "brock-hommes, bundled"
#: name -> (estimator and replicates to begin with, seeds of data)
BEGUN: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "boarding-school": (E.Pathwise(cal.GumbelSoftmax(1.0)), 1, (9, 10)),
    "sir": (E.Pathwise(cal.GumbelSoftmax(1.0)), 1, (77, 78)),
    "market": (E.ScoreFunction(), 4, (5, 6)),
    "brock-hommes": (E.Pathwise(), 1, (5, 6)),
    BUNDLED: (None, 0, (1003, 1004)),
}
#: Parameter values an update of the differences.
DIFFERENCES = 2


def begun(name: str, seed: int, budget: int) -> tuple[Case, cal.GVI]:
    """A problem, and the method that somebody has configured for it."""
    estimator, replicates, _ = BEGUN[name]
    if name != BUNDLED:
        return case(name, seed=seed), method(5, replicates, budget, estimator=estimator)
    text = bundled_configs()["brock-hommes"].replace("seed = 1001", f"seed = {seed}")
    problem, prior, configured = parse_config(text, "brock-hommes.toml").build(Path())
    assert isinstance(configured, cal.GVI)
    updates = max(4, budget // 2)  # 1,000 updates in a full run
    configured = dataclasses.replace(configured, max_updates=updates, evaluate_every=max(1, updates // 10))
    return Case(problem, prior, {n: float(getattr(problem.params, n)) for n in prior.names}), configured


def work(plan: cal.GVI, health: GradientHealth) -> float:
    """Simulations without a derivative that an update costs, by what was measured."""
    if isinstance(plan.estimator, E.FiniteDifferences):
        return plan.simulations * health.reference.forward_runs
    extra = 0
    if isinstance(plan.estimator, cal.Corrected):
        extra = 2 * plan.estimator.differences * plan.replicates
        plan = dataclasses.replace(plan, estimator=plan.estimator.estimator)
    for m in health.measurements:
        c = m.candidate
        if (c.estimator, c.horizon, c.replicates) == (plan.estimator, plan.horizon, plan.replicates):
            return plan.simulations * m.forward_runs + extra
    raise ValueError(f"No measurement of {plan.estimator} with {plan.horizon}.")


def as_much(plan: cal.GVI, configured: cal.GVI, health: GradientHealth) -> cal.GVI:
    """With as many updates as cost what those of the configured method do."""
    updates = max(4, round(configured.max_updates * work(configured, health) / work(plan, health)))
    every = max(1, round(updates * configured.evaluate_every / configured.max_updates))
    return dataclasses.replace(plan, max_updates=updates, evaluate_every=every)


def cell(name: str, seed: int, budget: int, repeats: int) -> dict[str, Any]:
    it, configured = begun(name, seed, budget)
    start = time.perf_counter()
    health = gradients(it.problem, it.prior, configured, repeats=repeats)
    out: dict[str, Any] = {"advice": advise(health), "seconds": time.perf_counter() - start}
    differences = dataclasses.replace(
        configured,
        estimator=cal.FiniteDifferences(),
        horizon=cal.FullHorizon(),
        simulations=DIFFERENCES,
        replicates=health.reference.candidate.replicates,
    )
    plans = {"configured": configured, "advised": advised(configured, health), "differences": differences}
    for what, plan in plans.items():
        if what == "advised" and plan == configured:
            continue
        plan = plan if what == "configured" else as_much(plan, configured, health)
        names = type(plan.estimator).__name__, type(plan.horizon).__name__
        out[what] = fitted(it, plan) | {"estimator": names[0], "horizon": names[1], "updates": plan.max_updates}
        out[what]["work"] = plan.max_updates * work(plan, health)
    return out


def table(results: dict[str, Any], cases: Sequence[tuple[str, int]]) -> str:
    heads = ("model, seed", "fit", "updates", "work", "objective", "at the start", "inside", "seconds")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, seed in cases:
        got = results.get(f"{name}|{seed}")
        for what in ("configured", "advised", "differences"):
            fit = (got or {}).get(what)
            if fit is None:
                continue
            wrong = ", wrong and confident" if wrong_but_confident(fit) else ""
            lines.append(
                f"| {name}, {seed} | {what}: {fit['estimator']} | {fit['updates']:,} | {fit['work']:,.0f} "
                f"| {fit['objective']:.4g} ± {fit['error']:.2g} | {fit['start']:.4g} "
                f"| {fit['inside']} of {fit['truths']}{wrong} | {fit['seconds']:.0f} |"
            )
    return "\n".join(lines)


def picture(results: dict[str, Any], cases: Sequence[tuple[str, int]], path: Path) -> None:
    """Objectives over that before any update, with two standard errors."""
    figure = Figure(figsize=(9, 1 + 0.45 * len(cases)), layout="constrained")
    axis = figure.subplots()
    done = [(name, seed) for name, seed in cases if f"{name}|{seed}" in results]
    for i, (what, colour) in enumerate((("configured", "C1"), ("advised", "C0"), ("differences", "0.6"))):
        for row, (name, seed) in enumerate(done):
            fit = results[f"{name}|{seed}"].get(what)
            if fit is None or fit["objective"] is None:
                continue
            axis.errorbar(
                fit["objective"] / fit["start"],
                -row - 0.2 * (i - 1),
                xerr=2 * fit["error"] / fit["start"],
                fmt="o",
                ms=4,
                color=colour,
                label=what if row == 0 else None,
            )
    axis.set_yticks([-row for row in range(len(done))], [f"{name}, data of seed {seed}" for name, seed in done])
    axis.set_xscale("log")
    axis.set_xlabel("objective, over that before any update")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="one model, few updates")
    size.add_argument("--quick", action="store_true", help="one seed of three models")
    parser.add_argument("--cases", nargs="+", choices=list(BEGUN), default=None)
    parser.add_argument("--out", type=Path, default=Path("studies/out/advice.png"))
    arguments = parser.parse_args(argv)
    some = ["sir"] if arguments.tiny else ["boarding-school", "sir", "market"] if arguments.quick else list(BEGUN)
    seeds = 1 if arguments.tiny or arguments.quick else None
    cases = [(name, seed) for name in arguments.cases or some for seed in BEGUN[name][2][:seeds]]
    budget, repeats = (100, 4) if arguments.tiny else (2000, 32)
    cells = Cells(arguments.out.with_suffix(".json"), {"budget": budget, "repeats": repeats})
    cells.run([(f"{n}|{s}", functools.partial(cell, n, s, budget, repeats)) for n, s in cases])
    print(table(cells.results, cases))
    for name, seed in cases:
        print(f"\n{name}, {seed}", *cells.results[f"{name}|{seed}"]["advice"], sep="\n- ")
    picture(cells.results, cases, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
