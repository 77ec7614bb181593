"""Brock and Hommes as in arXiv 2307.01085: horizons against gradient variance, loss and recovery of the truth.

Each cell (horizon, data seed) is written as it is finished, and a second start goes on from there.

    python benchmarks/brock_hommes_horizons.py [--out docs/img/brock_hommes_horizons] [--seeds 5] [--updates 1500]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import calibrant as cal

TRUTH = {"g2": 0.9, "b2": 0.2, "g3": 0.9, "b3": -0.2}
HORIZONS = {
    "0": cal.SlidingHorizon(0),
    "1": cal.SlidingHorizon(1),
    "3": cal.SlidingHorizon(3),
    "10": cal.SlidingHorizon(10),
    "30": cal.SlidingHorizon(30),
    "full": cal.FullHorizon(),
}


def problem_of(seed: int) -> cal.Problem:
    model = cal.models.BrockHommes(1000)
    data = cal.simulate(model, model.Params(), seed=1000 + seed).outputs
    return cal.Problem(model, data, cal.losses.MaximumMeanDiscrepancy(data, lags=4, bandwidth_factor=0.1))


def gradient_noise(problem: cal.Problem, horizon: cal.AbstractHorizon, n: int = 200) -> tuple[list, list]:
    """Mean and standard deviation over seeds of one replicate-group's gradient, at the truth."""
    seeds = cal.seeds(77, (n, 5))
    values = {name: jnp.full((n,), v) for name, v in TRUTH.items()}

    def total(values):
        return jnp.sum(
            cal.expect(
                problem, values, seeds=seeds, horizon=horizon, mode=cal.HybridMode(), simulations_at_once=50
            ).losses
        )

    gradient = jax.jit(jax.grad(total))(values)
    each = np.stack([np.asarray(gradient[name]) for name in TRUTH], axis=1)
    return each.mean(0).tolist(), each.std(0, ddof=1).tolist()


def cell(name: str, seed: int, updates: int) -> dict:
    problem = problem_of(seed)
    mean, deviation = gradient_noise(problem, HORIZONS[name])
    mode = cal.ReverseMode() if name in ("full", "0", "1", "3") else cal.HybridMode()
    method = cal.GVI(
        weight=0.001,
        replicates=5,
        max_updates=updates,
        learning_rate=2e-3,
        horizon=HORIZONS[name],
        mode=mode,
        evaluate_every=250,
    )
    started = time.perf_counter()
    result = cal.calibrate(problem, method=method, seed=seed, progress=False)
    quantiles = {k: v.tolist() for k, v in result.quantiles().items()}
    return {
        "horizon": name,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "evaluation": result.evaluation,
        "quantiles": quantiles,
        "inside": sum(q[0] <= TRUTH[k] <= q[2] for k, q in quantiles.items()),
        "gradient_mean": mean,
        "gradient_deviation": deviation,
    }


def draw(cells: list[dict], path: Path) -> None:
    names = [h for h in HORIZONS if any(c["horizon"] == h for c in cells)]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    x = np.arange(len(names))
    panels = (
        ("standard deviation of the gradient at the truth", lambda c: float(np.linalg.norm(c["gradient_deviation"]))),
        ("loss of the fitted posterior (fresh draws)", lambda c: c["evaluation"]["loss"]),
        ("true values inside their 90% intervals (of 4)", lambda c: c["inside"]),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        for i, h in enumerate(names):
            y = [value(c) for c in cells if c["horizon"] == h]
            axis.plot(np.full(len(y), i), y, "o", color="#2563a8", ms=4, alpha=0.6)
        axis.plot(
            x, [np.median([value(c) for c in cells if c["horizon"] == h]) for h in names], color="#22272e", lw=1.2
        )
        axis.set_xticks(x, names)
        axis.set_xlabel("horizon H")
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("log")
    figure.savefig(path.with_suffix(".png"), dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/img/brock_hommes_horizons"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1500)
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = json.loads(path.read_text()) if path.exists() else []
    done = {(c["horizon"], c["seed"]) for c in cells}
    for seed in range(arguments.seeds):
        for name in HORIZONS:
            if (name, seed) in done:
                continue
            cells.append(cell(name, seed, arguments.updates))
            path.write_text(json.dumps(cells, indent=1) + "\n")
            draw(cells, arguments.out)
            c = cells[-1]
            print(
                f"H={name:4s} seed {seed}: loss {c['evaluation']['loss']:.4f}, KL {c['evaluation']['kl']:.2f}, "
                f"{c['inside']}/4 inside, {c['seconds']:.0f} s",
                flush=True,
            )
    for name in HORIZONS:
        rows = [c for c in cells if c["horizon"] == name]
        if rows:
            losses = [c["evaluation"]["loss"] for c in rows]
            inside = sum(c["inside"] for c in rows)
            print(f"H={name:4s}: {inside}/{4 * len(rows)} inside, median loss {np.median(losses):.4f}")


if __name__ == "__main__":
    main()
