"""Horizons: bias and noise of the straight-through gradient, the calibration reached, and a rule that chooses H.

H = 0, 1, 2, 5, 10, 20, 50 and full, and the block and geometric relatives, over seven models (JUNE up to H = 20) and
three losses. Rules choose a horizon by what is measured at the start: "error", the smallest squared error of an
update's gradient, bias squared plus variance over the number of values; "clipped", of gradients clipped as the
optimiser clips them, the largest share of an update that goes the right way, among horizons whose median gradient has
its length within a factor of two (where there is none, the closest length); and "advised", what `calibrant gradients`
would say of the horizons that it offers (its H = 3 stands as H = 2 here): the same for the work, if the cosine is 0.8
at least, and differences where nothing is. "clipped" was made on the cells that `made_on` names; the cosine, the
length and the cost of "advised" are of the advice as it was before it was tried here. Each is judged by the objective
it reaches against the best horizon's and the full one's.

    python studies/horizons.py [--tiny | --quick] [--cases sir june ...] [--losses summaries errors mmd]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, LOSSES, available, case
from cells import Cells, fitted, measured, method, wrong_but_confident
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path
from calibrant.diagnostics._advice import about_as_long, points_right
from calibrant.diagnostics._gradients import right_way

#: name -> horizon
HORIZONS: dict[str, cal.AbstractHorizon] = {
    "H = 0": cal.SlidingHorizon(0),
    "H = 1": cal.SlidingHorizon(1),
    "H = 2": cal.SlidingHorizon(2),
    "H = 5": cal.SlidingHorizon(5),
    "H = 10": cal.SlidingHorizon(10),
    "H = 20": cal.SlidingHorizon(20),
    "H = 50": cal.SlidingHorizon(50),
    "full": cal.FullHorizon(),
    "block, 5": cal.BlockHorizon(5),
    "block, 20": cal.BlockHorizon(20),
    "geometric, 0.5": cal.GeometricHorizon(0.5),
    "geometric, 0.9": cal.GeometricHorizon(0.9),
}
QUICK = ["H = 0", "H = 1", "H = 5", "H = 20", "full", "geometric, 0.9"]
VALUES = 5


def makes_sense(horizon: str, steps: int) -> bool:
    """H below the number of steps."""
    return getattr(HORIZONS[horizon], "length", 0) < steps


def cell(case_name: str, loss: str, horizon: str, budget: int, repeats: int) -> dict[str, Any]:
    it = case(case_name, loss)
    plan = method(VALUES, it.problem.loss.min_replicates, budget, horizon=HORIZONS[horizon], mode=cal.ReverseMode())
    return measured(it, plan, points=4, repeats=repeats) | {"fit": fitted(it, plan)}


def made_on(case_name: str, loss: str) -> bool:
    """Seen before the rule by clipped gradients was written down."""
    return case_name in ("boarding-school", "brock-hommes") or (case_name, loss) == ("sir", "summaries")


def _error(got: dict[str, Any]) -> float:
    """Of an update's gradient, squared, of the signal's square."""
    if got["bias2"] is None or got["noise2"] is None:
        return math.inf
    return got["bias2"] + got["noise2"] / VALUES


def _clipped(got: dict[str, Any]) -> float:
    """Minus the share of an update that goes the right way, where the length is sound."""
    seen = got["clipped"]
    if any(seen[k] is None for k in ("cosine", "noise2", "length")):
        return math.inf
    if not about_as_long(seen["length"]):
        return 1 + abs(math.log(max(seen["length"], 1e-9)))
    return -right_way(seen["cosine"], seen["noise2"], VALUES)


def _advised(got: dict[str, Any]) -> float:
    """Minus the same for the work of a forward run, where `calibrant gradients` would not call it astray."""
    seen = got["clipped"]
    if any(seen[k] is None for k in ("cosine", "noise2", "length")):
        return math.inf
    if not (points_right(seen["cosine"]) and about_as_long(seen["length"])):
        return math.inf
    return -right_way(seen["cosine"], seen["noise2"], VALUES) / got["forward_runs"]


#: rule -> (what it makes small, among what)
RULES = {
    "error": (_error, QUICK),
    "clipped": (_clipped, QUICK),
    "advised": (_advised, ["full", "H = 0", "H = 2", "H = 10"]),
}


def judged(results: dict[str, Any], case_name: str, loss: str) -> dict[str, Any] | None:
    """What the rules choose, and lose, beside the best of all, the full one, and H = 0."""
    found = {h: results[f"{case_name}|{loss}|{h}"] for h in HORIZONS if f"{case_name}|{loss}|{h}" in results}
    fits = {h: got["fit"] for h, got in found.items() if got["fit"]["objective"] is not None}
    if not any(h in fits for h in QUICK):
        return None
    best = min(fits, key=lambda h: fits[h]["objective"])
    gain = max(fits[best]["start"] - fits[best]["objective"], 1e-12)

    def lost(name: str) -> float | None:
        return None if name not in fits else (fits[name]["objective"] - fits[best]["objective"]) / gain

    def chosen(badness: Callable[[dict[str, Any]], float], among: list[str]) -> str:
        of = {h: badness(found[h]) for h in among if h in fits}
        return min(of, key=of.__getitem__) if of and min(of.values()) < math.inf else "differences"

    rules = {rule: chosen(*how) for rule, how in RULES.items()}
    return {
        "best": best,
        "error": (fits[best]["error"] or 0) / gain,
        "full": lost("full"),
        "H = 0": lost("H = 0"),
        "rules": {rule: (choice, lost(choice)) for rule, choice in rules.items()},
    }


def table(results: dict[str, Any], cases: Sequence[str], losses: Sequence[str]) -> str:
    lines = []
    for loss in losses:
        for case_name in cases:
            lines += [f"\n**{case_name}, {loss}**\n"]
            lines += ["| horizon | cosine | length | noise² | runs each | objective | inside |", "| --- " * 7 + "|"]
            for name in HORIZONS:
                got = results.get(f"{case_name}|{loss}|{name}")
                if got is None:
                    continue
                fit = got["fit"]
                numbers = [got[k] for k in ("cosine", "ratio", "noise2", "forward_runs")]
                shown = ["all noise" if x is None else f"{x:.2g}" for x in numbers]
                flag = " (wrong, confident)" if wrong_but_confident(fit) else ""
                objective = "" if fit["objective"] is None else f"{fit['objective']:.3g} ± {fit['error'] or 0:.1g}"
                inside = f"{fit['inside']} of {fit['truths']}{flag}" if fit["truths"] else ""
                lines.append(f"| {name} | {' | '.join(shown)} | {objective} | {inside} |")
    heads = (
        "model, loss",
        "",
        "by error",
        "loses",
        "clipped",
        "loses",
        "advised",
        "loses",
        "best",
        "full loses",
        "H = 0 loses",
        "error",
    )
    lines += [f"\n| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for case_name in cases:
        for loss in losses:
            verdict = judged(results, case_name, loss)
            if verdict is not None:
                which = "made on" if made_on(case_name, loss) else "tested on"
                of_rules = [x for choice, lost in verdict["rules"].values() for x in (choice, _percent(lost))]
                others = [verdict["best"], *(_percent(verdict[k]) for k in ("full", "H = 0", "error"))]
                lines.append(f"| {' | '.join([f'{case_name}, {loss}', which, *of_rules, *others])} |")
    confident = sum(wrong_but_confident(got["fit"]) for got in results.values())
    lines.append(f"\nwrong and confident: {confident} of {len(results)}; lost: share of the best horizon's gain")
    return "\n".join(lines)


def _percent(x: float | None) -> str:
    return "" if x is None else f"{x:.1%}"


def picture(results: dict[str, Any], cases: Sequence[str], losses: Sequence[str], path: Path) -> None:
    figure = Figure(figsize=(2.9 * len(cases) + 1.2, 2.6 * len(losses) + 0.8), layout="constrained")
    axes = figure.subplots(len(losses), len(cases), sharex=True, squeeze=False)
    names = [h for h in HORIZONS if any(f"{c}|{loss}|{h}" in results for c in cases for loss in losses)]
    for row, loss in enumerate(losses):
        for column, case_name in enumerate(cases):
            axis = axes[row, column]
            for key, colour in (("bias2", "#2563a8"), ("noise2", "#c2410c")):
                points = [
                    (i, got[key])
                    for i, n in enumerate(names)
                    if (got := results.get(f"{case_name}|{loss}|{n}")) and got[key] is not None
                ]
                label = {"bias2": "bias², of signal²", "noise2": "noise², of signal²"}[key]
                for line, relatives in (("o-", False), ("s", True)):  # the relatives are in no order
                    shown = [(i, y) for i, y in points if (names[i].startswith(("block", "geometric"))) == relatives]
                    if shown:
                        x, y = zip(*shown, strict=True)
                        y = np.clip(y, 1e-4, 1e8)
                        axis.plot(x, y, line, ms=3, lw=1, color=colour, label=None if relatives else label)
            if not any(f"{case_name}|{loss}|{n}" in results for n in names):
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not run", fontsize=8, color="0.5", ha="center", transform=axis.transAxes)
                continue
            axis.set_yscale("log")
            axis.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)
            axis.tick_params(axis="y", which="both", labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axis.set_title(case_name, fontsize=9)
            if column == 0:
                axis.set_ylabel(loss, fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="one model, two horizons, few simulations")
    size.add_argument("--quick", action="store_true", help="three models, one loss, six horizons")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--losses", nargs="+", choices=LOSSES)
    parser.add_argument("--horizons", nargs="+", choices=list(HORIZONS))
    parser.add_argument("--budget", type=int, default=None, help="simulations of a calibration")
    parser.add_argument("--out", type=Path, default=Path("studies/out/horizons"))
    arguments = parser.parse_args(argv)
    quick = ["sir", "brock-hommes", "market"]
    cases = arguments.cases or (["random-walk"] if arguments.tiny else quick if arguments.quick else list(CASES))
    cases = [name for name in cases if available(name)]
    losses = arguments.losses or (["summaries"] if arguments.tiny or arguments.quick else list(LOSSES))
    some = ["H = 0", "full"] if arguments.tiny else QUICK if arguments.quick else list(HORIZONS)
    horizons = arguments.horizons or some
    budget = arguments.budget or (60 if arguments.tiny else 2000)
    repeats = 4 if arguments.tiny else 32
    cells = Cells(arguments.out.with_suffix(".json"), {"budget": budget, "repeats": repeats})
    todo = [
        (f"{c}|{loss}|{h}", lambda c=c, loss=loss, h=h: cell(c, loss, h, budget, repeats))
        for c in cases
        for loss in losses
        for h in horizons
        if makes_sense(h, case(c, loss).problem.steps)
    ]
    cells.run(todo)
    picture(cells.results, cases, losses, arguments.out.with_suffix(".png"))
    print(table(cells.results, cases, losses))


if __name__ == "__main__":
    main()
