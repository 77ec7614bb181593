"""Every gradient estimator on seven models: bias, noise, cost, and the calibration reached with equal simulations.

Bias and noise are of the gradient in the coordinates of the prior, at draws of the prior, against central differences
with common random numbers of the same seeds. Every calibration has the same number of simulations, whatever else they
cost, and its objective is evaluated on fresh draws.

    python studies/estimators_by_model.py [--tiny | --quick] [--cases sir market ...] [--only straight-through ...]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, available, case
from cells import Cells, fitted, measured, method, wrong_but_confident
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path

E = cal.estimators
#: name -> (estimator, values an update, replicates)
ESTIMATORS: dict[str, tuple[Any, int, int]] = {
    "straight-through": (E.Pathwise(), 5, 1),
    "corrected": (cal.Corrected(), 5, 1),
    "Gumbel-softmax 0.1": (E.Pathwise(cal.GumbelSoftmax(0.1)), 5, 1),
    "Gumbel-softmax 0.5": (E.Pathwise(cal.GumbelSoftmax(0.5)), 5, 1),
    "finite differences": (E.FiniteDifferences(0.2), 2, 1),
    "score function": (E.ScoreFunction(), 5, 4),
    "score, state baseline": (E.ScoreFunction(E.StateRegression()), 2, 16),
    "MuProp": (E.MuProp(), 2, 16),
    "controlled score": (E.ControlledScore(), 2, 32),
    "controlled score, pooled": (E.ControlledScore(pool=True), 32, 1),
    "REBAR": (E.REBAR(), 5, 4),
    "branching, 8": (E.Branching(8), 5, 1),
    "score of the flow": (cal.FlowScore(), 16, 1),
}

#: Models whose gradients are measured with fewer points and repeats: 32 replicates and the differences of as many take
#: minutes.
COSTLY = ("june", "sp500")


def cell(case_name: str, name: str, budget: int, repeats: int) -> dict[str, Any]:
    it = case(case_name)
    estimator, simulations, replicates = ESTIMATORS[name]
    each = cal.GVI(simulations=simulations, replicates=replicates, estimator=estimator)
    runs = each.runs_an_update(it.problem, it.prior.dim) / (simulations * replicates)
    plan = method(simulations, replicates, budget, runs, estimator=estimator)
    points, repeats = (2, 64 // max(replicates, 8)) if case_name in COSTLY else (4, repeats)
    repeats = max(repeats, 4)
    try:
        plan.check(it.problem, it.prior)
        of_a_point = isinstance(estimator, E.AbstractEstimator)
        out = {} if not of_a_point else measured(it, plan, points=points, repeats=repeats)
        return out | {"fit": fitted(it, plan)}
    except ValueError as error:
        return {"refused": str(error)}


def table(results: dict[str, Any], cases: Sequence[str], names: Sequence[str]) -> str:
    lines = []
    for case_name in cases:
        lines.append(f"\n**{case_name}**\n")
        heads = (
            "estimator",
            "values x replicates",
            "cosine",
            "length",
            "noise²",
            "cost",
            "objective",
            "inside",
            "seconds",
        )
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for name in names:
            got = results.get(f"{case_name}|{name}")
            if got is None:
                continue
            if "refused" in got:
                lines.append(f"| {name} | | refused | | | | | | |")
                continue
            fit = got["fit"]
            numbers = [got.get(k) for k in ("cosine", "ratio", "noise2", "forward_runs")]
            shown = ["" if x is None else f"{x:.2g}" for x in numbers]
            flag = " (wrong, confident)" if wrong_but_confident(fit) else ""
            objective = "" if fit["objective"] is None else f"{fit['objective']:.3g} ± {fit['error'] or 0:.1g}"
            inside = f"{fit['inside']} of {fit['truths']}" if fit["truths"] else ""
            how = " x ".join(map(str, ESTIMATORS[name][1:]))
            lines.append(
                f"| {name} | {how} | {' | '.join(shown)} | {objective} | {inside}{flag} | {fit['seconds']:.0f} |"
            )
    return "\n".join(lines)


def picture(results: dict[str, Any], cases: Sequence[str], names: Sequence[str], path: Path) -> None:
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.5, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in grid.flat[len(cases) :]:
        axis.set_axis_off()
    for axis, case_name in zip(grid.flat, cases, strict=False):
        got = [results.get(f"{case_name}|{name}", {}).get("fit") for name in names]
        best = min((f["objective"] for f in got if f and f["objective"] is not None), default=0.0)
        for i, fit in enumerate(got):
            if fit is None or fit["objective"] is None:
                continue
            colour = "#c2410c" if wrong_but_confident(fit) else "#2563a8"
            above = fit["objective"] - best
            axis.errorbar(above, i, xerr=2 * (fit["error"] or 0), fmt="o", ms=4, color=colour, lw=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=-0.5)
        axis.set_title(case_name, fontsize=9)
        axis.set_xlabel("objective above the best", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    grid[0, 0].set_yticks(np.arange(len(names)), names)
    grid[0, 0].invert_yaxis()
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="one model, two estimators, few simulations")
    size.add_argument("--quick", action="store_true", help="two models")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--only", nargs="+", choices=list(ESTIMATORS), default=None)
    parser.add_argument("--budget", type=int, default=None, help="simulations of a calibration")
    parser.add_argument("--out", type=Path, default=Path("studies/out/estimators_by_model"))
    arguments = parser.parse_args(argv)
    quick = ["sir", "market"]
    cases = arguments.cases or (["random-walk"] if arguments.tiny else quick if arguments.quick else list(CASES))
    cases = [name for name in cases if available(name)]
    names = arguments.only or (["straight-through", "finite differences"] if arguments.tiny else list(ESTIMATORS))
    budget = arguments.budget or (60 if arguments.tiny else 2000)
    repeats = 4 if arguments.tiny else 32
    cells = Cells(arguments.out.with_suffix(".json"), {"budget": budget, "repeats": repeats})
    todo = [(c, n) for c in cases for n in names]
    cells.run([(f"{c}|{n}", lambda c=c, n=n: cell(c, n, budget, repeats)) for c, n in todo])
    picture(cells.results, cases, names, arguments.out.with_suffix(".png"))
    print(table(cells.results, cases, names))


if __name__ == "__main__":
    main()
