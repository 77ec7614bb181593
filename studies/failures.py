"""Simulations that fail: Brock & Hommes with a prior under which prices explode, and what each way of counting does.

Trends of both strategies are uniform on [0, 1.5]; above about 1.1 prices grow until no float holds them. The truth is
the usual one (0.9). For each way: the share of the posterior's simulations that fail, the discrepancy of those that do
not, and the truths inside 90% intervals.

    python studies/failures.py [--tiny]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from cells import Cells
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path
from calibrant.inference import LearnProbability, LeaveOut, Penalise

WAYS = {
    "left out": LeaveOut(),
    "penalised": Penalise(1.0),  # above the discrepancy of anything that stays finite
    "learnt": LearnProbability(),
}
WEIGHT = 1e-3
REPLICATES = 5


def problem(agents: int) -> tuple[cal.Problem, cal.Prior]:
    model = cal.models.BrockHommes(agents)
    data = cal.simulate(model, model.default_params, seed=1001).outputs
    loss = cal.losses.MaximumMeanDiscrepancy(np.asarray(data), lags=4, bandwidth_factor=0.05)
    it = cal.Problem(model, data, loss)
    trend = dist.Uniform(0.0, 1.5)
    return it, cal.Prior.of(it, {"g2": trend, "g3": trend})


def cell(way: str, agents: int, updates: int, draws: int, seed: int) -> dict[str, Any]:
    it, prior = problem(agents)
    method = cal.GVI(
        weight=WEIGHT,
        simulations=10,
        replicates=REPLICATES,
        max_updates=updates,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
        evaluate_every=max(1, updates // 5),
        evaluation_simulations=200,
        estimator=cal.FiniteDifferences(0.1),
        family=cal.posteriors.MaskedAutoregressiveFlow(),
        failures=WAYS[way],
        max_failed_fraction=1.0,
    )
    start = time.perf_counter()
    result = cal.calibrate(it, prior, method=method, seed=seed, progress=False, throw=False)
    seconds = time.perf_counter() - start
    values = result.sample(jax.random.key(1), draws)
    losses = []
    for i in range(0, draws, 100):
        some = {name: x[i : i + 100] for name, x in values.items()}
        losses.append(np.asarray(cal.expect(it, some, seeds=cal.seeds(seed + 99, (100, REPLICATES), stream=i)).losses))
    loss = np.concatenate(losses)
    finite = np.isfinite(loss)
    low, high = (result.quantiles((q,)) for q in (0.05, 0.95))
    truth = {name: float(getattr(it.params, name)) for name in prior.names}
    return {
        "failed_at_start": float(result.updates["failed"][:10].mean() / 10),
        "failed": float(1 - finite.mean()),
        "failed_error": float(np.sqrt(max(finite.mean() * (1 - finite.mean()), 1 / draws) / draws)),
        "discrepancy": float(loss[finite].mean()),
        "discrepancy_error": float(loss[finite].std() / np.sqrt(finite.sum())),
        "inside": sum(float(low[n][0]) <= x <= float(high[n][0]) for n, x in truth.items()),
        "intervals": {n: [float(low[n][0]), float(high[n][0])] for n in truth},
        "g2": np.asarray(values["g2"][:500]).tolist(),
        "g3": np.asarray(values["g3"][:500]).tolist(),
        "seconds": seconds,
    }


def picture(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(3.2 * len(results), 3.2), layout="constrained")
    axes = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, got) in zip(axes, results.items(), strict=True):
        axis.scatter(got["g2"], got["g3"], s=5, color="#2563a8", alpha=0.5, lw=0)
        axis.plot(0.9, 0.9, "+", color="#c2410c", ms=12, mew=2)
        axis.set_title(f"{name.split('|')[0]}: {got['failed']:.1%} fail", fontsize=9)
        axis.set_xlabel("g2", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("g3", fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def table(results: dict[str, Any]) -> str:
    lines = ["| way | fail at the start | fail in the posterior | discrepancy of the others | truths inside 90% | s |"]
    lines.append("| --- " * 6 + "|")
    for key, got in results.items():
        lines.append(
            f"| {key.split('|')[0]} | {got['failed_at_start']:.0%} | {got['failed']:.2%} ± {got['failed_error']:.2%} | "
            f"{got['discrepancy']:.4f} ± {got['discrepancy_error']:.4f} | {got['inside']} of 4 | {got['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="10 agents, 4 updates")
    parser.add_argument("--out", type=Path, default=Path("studies/out/failures"))
    arguments = parser.parse_args(argv)
    agents, updates, draws = (10, 4, 100) if arguments.tiny else (1000, 500, 2000)
    cells = Cells(arguments.out.with_suffix(".json"), {"agents": agents, "updates": updates, "draws": draws})
    todo = [f"{way}|0" for way in WAYS]
    cells.run([(key, functools.partial(cell, key.split("|")[0], agents, updates, draws, 0)) for key in todo])
    shown = {key: cells.results[key] for key in todo}
    picture(shown, arguments.out.with_suffix(".png"))
    print(table(shown))


if __name__ == "__main__":
    main()
