"""JUNE in a town: are truths drawn from the prior recovered, and is the posterior as narrow as it should be?

For each data set a truth is drawn from the prior, data are simulated, and the posterior is fitted. The table counts the
truths inside their 90% intervals and sets the posterior's widths beside those that the curvature of the loss predicts
(Fisher information of the loss from central differences with common random numbers: no automatic differentiation).

    python studies/june_recovery.py [--people 20000] [--horizon full] [--weight 0.2] [--data-sets 0 1 2 3 4]

Results are kept data set by data set in OUT.json; what is there already is not run again.
"""

import argparse
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path, write_text
from calibrant.models.june import Calendar

FAMILIES = {"full-rank": cal.posteriors.FullRankGaussian(), "autoregressive": cal.posteriors.MaskedAutoregressiveFlow()}
STREAM, DAYS = "cumulative_infections", 50


def horizon_of(text: str) -> tuple[Any, Any]:
    """A horizon and the mode that is cheapest for it."""
    if text == "full":
        return cal.FullHorizon(), cal.CheckpointedReverseMode()
    if text == "0":
        return cal.SlidingHorizon(0), cal.HybridMode()
    return cal.GeometricHorizon(float(text)), cal.CheckpointedReverseMode()


def energy_score(draws: np.ndarray, truth: np.ndarray) -> float:
    """E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 22), in units of the prior's standard deviations."""
    half = len(draws) // 2
    far = np.linalg.norm(draws - truth, axis=1).mean()
    return float(far - np.linalg.norm(draws[:half] - draws[half : 2 * half], axis=1).mean() / 2)


def curvature_sd(model: Any, truth: dict, names: list[str], prior_sd: np.ndarray, weight: float) -> np.ndarray:
    """Posterior sd by Laplace's approximation: Gauss-Newton Hessian of the loss over `weight`, plus the prior."""
    step, runs = 0.1, 24
    at = jnp.asarray([truth[name] for name in names])

    @jax.jit
    def mean_log(values):
        params = model.default_params.replace(dict(zip(names, values, strict=True)))
        seeds = cal.seeds(77, (runs,))

        def one(seed):
            return jnp.log10(1 + cal.simulate(model, params, seed=seed).outputs[STREAM])

        return jnp.mean(jax.lax.map(one, seeds, batch_size=4), axis=0)

    columns = []
    for i in range(len(names)):
        shift = step * jnp.eye(len(names))[i]
        columns.append(np.asarray(mean_log(at + shift) - mean_log(at - shift)) / (2 * step))
    jacobian = np.stack(columns, axis=-1)
    information = 2 / weight * jacobian.T @ jacobian / DAYS + np.diag(prior_sd**-2.0)
    return np.sqrt(np.diag(np.linalg.inv(information)))


def one_data_set(model: Any, index: int, arguments: argparse.Namespace) -> dict[str, Any]:
    loss, weight = cal.losses.Streams({STREAM: cal.losses.LogMeanSquaredError()}), arguments.weight
    if arguments.replicates > 1:  # the mean over simulation noise inside the logarithm
        scaled = cal.losses.Streams({STREAM: cal.losses.LogMeanSquaredError()}, {STREAM: 1 / arguments.weight})
        loss, weight = cal.losses.MarginalLikelihood(scaled), 1.0
    prior = cal.Prior.of(cal.Problem(model, {STREAM: jnp.ones(DAYS)}, loss))
    names = list(prior.names)
    truth = {name: x[0] for name, x in prior.sample(jax.random.key(100 + index), 1).items()}
    data = cal.simulate(model, model.default_params.replace(truth), seed=1000 + index).outputs[STREAM]
    problem = cal.Problem(model, {STREAM: data}, loss)
    horizon, mode = horizon_of(arguments.horizon)
    estimator = cal.estimators.Pathwise()
    if arguments.estimator == "differences":
        estimator, horizon, mode = cal.FiniteDifferences(), cal.FullHorizon(), cal.ReverseMode()
    method = cal.GVI(
        weight=weight,
        estimator=estimator,
        simulations=arguments.simulations,
        replicates=arguments.replicates,
        family=FAMILIES[arguments.posterior],
        horizon=horizon,
        mode=mode,
        learning_rate=arguments.learning_rate,
        max_updates=arguments.updates,
        evaluate_every=max(arguments.updates // 5, 1),
        evaluation_simulations=40,
        simulations_at_once=arguments.at_once,
    )
    start = time.perf_counter()
    result = cal.calibrate(problem, prior, method=method, seed=index, progress=False, throw=False)
    seconds = time.perf_counter() - start
    before = prior.sample(jax.random.key(1), 4000)
    after = result.posterior.sample(0, 4000)
    sd = np.asarray([np.std(np.asarray(before[name])) for name in names])
    q = np.stack([np.asarray(after[name]) for name in names], axis=-1)
    p = np.stack([np.asarray(before[name]) for name in names], axis=-1)
    y = np.asarray([float(truth[name]) for name in names])
    low, high = np.quantile(q, [0.05, 0.95], axis=0)
    expected = curvature_sd(model, truth, names, sd, arguments.weight)
    return {
        "names": names,
        "infected": float(data[-1]),
        "truth": y.tolist(),
        "mean": q.mean(0).tolist(),
        "sd": q.std(0).tolist(),
        "prior_sd": sd.tolist(),
        "curvature_sd": expected.tolist(),
        "inside": ((low <= y) & (y <= high)).tolist(),
        "energy_score": energy_score(q / sd, y / sd),
        "energy_score_prior": energy_score(p / sd, y / sd),
        "loss": [float(h["loss"]) for h in result.history],
        "seconds": seconds,
    }


def table(cells: dict[str, Any]) -> str:
    lines = [
        "| data set | infected | inside 90% | energy score (prior) | log_seed: z, sd ratio | household | company | "
        "school | identified, of them sd < half | s |",
        "| --- " * 10 + "|",
    ]
    for key, c in cells.items():
        ratio = np.asarray(c["sd"]) / np.asarray(c["prior_sd"])
        z = (np.asarray(c["truth"]) - np.asarray(c["mean"])) / np.asarray(c["sd"])
        identified = np.asarray(c["curvature_sd"]) < 0.5 * np.asarray(c["prior_sd"])
        shown = [c["names"].index(f"log_{n}") for n in ("seed", "beta_household", "beta_company", "beta_school")]
        parts = " | ".join(f"{z[i]:.1f}, {ratio[i]:.2f}" for i in shown)
        lines.append(
            f"| {key} | {c['infected']:,.0f} | {sum(c['inside'])} | {c['energy_score']:.2f} "
            f"({c['energy_score_prior']:.2f}) | {parts} | {identified.sum()}, {(ratio[identified] < 0.5).sum()} | "
            f"{c['seconds']:.0f} |"
        )
    inside, total = sum(sum(c["inside"]) for c in cells.values()), sum(len(c["inside"]) for c in cells.values())
    return "\n".join([*lines, "", f"{inside} of {total} truths inside."])


def picture(cells: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=[3, 2])
    names = [name.removeprefix("log_beta_") for name in next(iter(cells.values()))["names"]]
    for k, c in enumerate(cells.values()):
        at = np.arange(len(names)) + 0.12 * (k - (len(cells) - 1) / 2)
        error = (np.asarray(c["mean"]) - np.asarray(c["truth"])) / np.asarray(c["prior_sd"])
        half = 1.645 * np.asarray(c["sd"]) / np.asarray(c["prior_sd"])
        axes[0].errorbar(at, error, yerr=half, fmt="o", ms=3, lw=1, color=f"C{k}")
        ratio, expected = (np.asarray(c[n]) / np.asarray(c["prior_sd"]) for n in ("sd", "curvature_sd"))
        axes[1].plot(expected, ratio, "o", ms=4, color=f"C{k}")
    axes[0].axhline(0, color="0.6", lw=0.8)
    axes[0].set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes[0].set_ylabel("posterior minus truth, in prior sds\n(bars: 90%)")
    axes[1].plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes[1].set(xlabel="sd predicted from curvature / prior's", ylabel="sd of the posterior / prior's")
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=float, default=20_000)
    parser.add_argument("--horizon", default="full", help="full, 0, or the discount of a geometric horizon")
    parser.add_argument("--estimator", choices=["pathwise", "differences"], default="pathwise")
    parser.add_argument("--weight", type=float, default=0.2)
    parser.add_argument("--simulations", type=int, default=5)
    parser.add_argument("--replicates", type=int, default=1, help="more: of exp(-loss / weight), before its logarithm")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--posterior", choices=list(FAMILIES), default="full-rank")
    parser.add_argument("--data-sets", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("studies/out/june_recovery"))
    arguments = parser.parse_args()
    world = cal.worlds.build_world(round(arguments.people), seed=1)
    model = cal.models.June(world, Calendar(dt.date(2020, 3, 1), DAYS))
    stored = arguments.out.with_suffix(".json")
    settings = {k: v for k, v in vars(arguments).items() if k not in ("data_sets", "at_once", "out")}
    kept = json.loads(stored.read_text()) if stored.exists() else {"settings": settings, "cells": {}}
    if kept["settings"] != settings:
        parser.error(f"{stored} holds results of other settings, {kept['settings']}: give another --out.")
    stored.parent.mkdir(parents=True, exist_ok=True)
    for index in arguments.data_sets:
        if str(index) not in kept["cells"]:
            kept["cells"][str(index)] = one_data_set(model, index, arguments)
            write_text(stored, json.dumps(kept, indent=1) + "\n")
        print(table({str(index): kept["cells"][str(index)]}), flush=True)
    picture(kept["cells"], arguments.out.with_suffix(".png"))
    print(table(kept["cells"]))


if __name__ == "__main__":
    main()
