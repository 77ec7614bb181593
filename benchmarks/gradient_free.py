"""The boarding school by gradients, by the score of the flow, and by random search: what gradients buy.

Loss against simulations, forward-run equivalents and seconds. A pathwise update by reverse mode is counted as so many
forward runs as it takes, measured in the same process.

    python benchmarks/gradient_free.py [--out docs/img/gradient_free]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from matplotlib.figure import Figure
from measuring import timed

import calibrant as cal

L = cal.losses
REPLICATES = 10


def problem() -> tuple[cal.Problem, cal.Prior]:
    data = {"in_bed": np.array(cal.models.OUTBREAK_1978.in_bed, float)}
    loss = L.Streams({"in_bed": L.MarginalLikelihood(L.GaussianLogLikelihood("noise"))})
    made = cal.Problem(cal.models.BoardingSchoolSIR(), data, loss)
    return made, cal.Prior.of(made, {"noise": dist.LogNormal(2.7, 0.5)})


def cost_of_a_gradient(made: cal.Problem) -> float:
    """Time of losses with gradients over time of losses alone."""
    seeds = cal.seeds(0, (5, REPLICATES))
    values = {"r0": jnp.full(5, 3.5), "infectious_days": jnp.full(5, 2.0), "initial": jnp.full(5, 2.0)}
    values["noise"] = jnp.full(5, 15.0)
    forward = jax.jit(lambda v: jnp.sum(cal.expect(made, v, seeds=seeds).losses))
    both = jax.jit(jax.value_and_grad(lambda v: jnp.sum(cal.expect(made, v, seeds=seeds).losses)))
    return timed(lambda: both(values), 5).seconds / timed(lambda: forward(values), 5).seconds


def variational(made: cal.Problem, prior: cal.Prior, seed: int, estimator, updates: int, factor: float) -> list[dict]:
    method = cal.GVI(
        replicates=REPLICATES,
        max_updates=updates,
        learning_rate=3e-3,
        estimator=estimator,
        evaluate_every=updates // 10,
        evaluation_simulations=50,
    )
    rows, state = [], method.init(made, prior, seed)
    spent = 0.0
    for _ in range(10):
        start = time.perf_counter()
        state, _ = method.step(made, state, updates // 10)
        jax.block_until_ready(state.update)
        spent += time.perf_counter() - start
        simulations = int(state.update) * 5 * REPLICATES
        out = method.evaluate(made, state, 0)
        rows.append(
            {
                "simulations": simulations,
                "forward_runs": simulations * factor,
                "seconds": spent,
                "loss": float(out.loss),
                "objective": float(out.objective),
            }
        )
    return rows


def random_search(made: cal.Problem, prior: cal.Prior, seed: int, budget: int) -> list[dict]:
    """Draws of the prior; the best on one set of seeds is evaluated on another."""
    n = budget // REPLICATES
    values = prior.sample(jax.random.key(seed), n)
    seeds = cal.seeds(seed, (n, REPLICATES), stream=3)
    start = time.perf_counter()
    losses = np.asarray(cal.expect(made, values, seeds=seeds, simulations_at_once=500).losses)
    spent = time.perf_counter() - start
    rows = []
    for part in np.linspace(0.1, 1, 10):
        k = int(part * n)
        best = int(np.nanargmin(losses[:k]))
        again = {name: jnp.repeat(x[best : best + 1], 100, axis=0) for name, x in values.items()}
        fresh = cal.expect(made, again, seeds=cal.seeds(99, (100, REPLICATES)), simulations_at_once=500).losses
        used = k * REPLICATES
        rows.append(
            {"simulations": used, "forward_runs": used, "seconds": spent * part, "loss": float(jnp.mean(fresh))}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/img/gradient_free"))
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    made, prior = problem()
    factor = cost_of_a_gradient(made)
    results: dict[str, list] = {"pathwise": [], "flow score": [], "random search": []}
    for seed in range(arguments.seeds):
        estimator = cal.estimators.Pathwise()
        results["pathwise"].append(variational(made, prior, seed, estimator, arguments.updates, factor))
        results["flow score"].append(variational(made, prior, seed, cal.FlowScore(), arguments.updates, 1.0))
        budget = arguments.updates * 5 * REPLICATES
        results["random search"].append(random_search(made, prior, seed, budget))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"factor": factor, **results}, indent=1) + "\n")
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    colors = {"pathwise": "#2563a8", "flow score": "#c2410c", "random search": "#6b7280"}
    for axis, x in zip(figure.subplots(1, 3), ("simulations", "forward_runs", "seconds"), strict=True):
        for name, runs in results.items():
            for i, rows in enumerate(runs):
                axis.plot(
                    [r[x] for r in rows], [r["loss"] for r in rows], color=colors[name], label=None if i else name
                )
        axis.set_xlabel(x.replace("_", " "))
        axis.set_yscale("log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.axes[0].set_ylabel("expected loss (negative log-likelihood)")
    figure.savefig(arguments.out.with_suffix(".png"), dpi=140)
    print(f"a gradient costs {factor:.2f} forward runs")
    for name, runs in results.items():
        for i, rows in enumerate(runs):
            r = rows[-1]
            print(
                f"{name:14s} seed {i}: loss {r['loss']:.2f} after {r['simulations']} simulations, "
                f"{r['forward_runs']:.0f} forward runs, {r['seconds']:.0f} s"
            )


if __name__ == "__main__":
    main()
