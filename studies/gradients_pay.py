"""Do gradients pay? JUNE fitted by pathwise gradients, by gradients from losses alone, and by CMA-ES.

Two problems: the bundled town (cumulative infections at a truth drawn from the prior, log-scale loss) and London at a
small scale (deaths and admissions of 2020; needs --data). Every method starts from the prior and has the same number of
simulations. Compared is the mean loss, over the same fresh seeds, at the centre of what a method has (median of the
posterior, mean of the search distribution). A simulation with its gradient counts as the forward runs that it takes,
measured here.

    pip install 'calibrant[studies]'
    python studies/gradients_pay.py town
    python studies/gradients_pay.py london --data DIR [--scale 0.005]

Results are kept run by run in OUT.json; what is there already is not run again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import cma  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._config import load_config
from calibrant._files import atomic_path, write_text

FRESH = 16
PARTS = 10


def build(arguments: argparse.Namespace) -> tuple[cal.Problem, cal.Prior, Any]:
    config, directory, _ = load_config(f"june-{arguments.problem}")
    if arguments.problem == "london":
        if arguments.data is None:
            raise SystemExit("london needs --data DIR.")
        config.model.options["scale"] = arguments.scale
        for source in (config.data, *config.data.shares.values()):
            source.file = str(arguments.data.resolve() / str(source.file))
    problem, prior, method = config.build(directory)
    if arguments.problem == "town":  # the bundled truth is the middle of the prior, where every method begins
        truth = {name: x[0] for name, x in prior.sample(jax.random.key(103), 1).items()}
        data = cal.simulate(problem.model, problem.params.replace(truth), seed=1003).outputs
        problem = cal.Problem(problem.model, {name: data[name] for name in problem.data}, problem.loss)
    return problem, prior, method


def losses_at(problem: cal.Problem, values: dict[str, Any], words: Any) -> np.ndarray:
    """Losses, one a row of values."""
    return np.asarray(cal.expect(problem, values, seeds=words, simulations_at_once=1).losses)


def centre_loss(problem: cal.Problem, values: dict[str, Any]) -> tuple[float, float]:
    """Mean loss over fresh seeds at one point, and its standard error."""
    many = {name: jnp.repeat(jnp.asarray(x)[None], FRESH, axis=0) for name, x in values.items()}
    losses = losses_at(problem, many, cal.seeds(99, (FRESH, 1), stream=5))
    return float(losses.mean()), float(losses.std() / np.sqrt(FRESH))


def variational(
    problem: cal.Problem, prior: cal.Prior, base: Any, seed: int, budget: int, cost: float, change: dict[str, Any]
) -> list[dict[str, float]]:
    method = dataclasses.replace(base, **change)
    runs = method.runs_an_update(problem, prior.dim)
    updates = max(1, budget // runs // PARTS)
    method = dataclasses.replace(method, max_updates=updates * PARTS)
    state = method.init(problem, prior, seed)
    jax.block_until_ready(method.step(problem, state, updates))  # compiled, and thrown away
    rows, spent = [], 0.0
    for _ in range(PARTS):
        start = time.perf_counter()
        state, _ = method.step(problem, state, updates)
        jax.block_until_ready(state.update)
        spent += time.perf_counter() - start
        used = int(state.update) * runs
        draws = state.posterior.sample(0, 2000)
        loss, error = centre_loss(problem, {name: jnp.median(x, axis=0) for name, x in draws.items()})
        rows.append({"simulations": used, "forward_runs": used * cost, "seconds": spent, "loss": loss, "error": error})
    return rows


def evolution(problem: cal.Problem, prior: cal.Prior, seed: int, simulations: int) -> list[dict[str, float]]:
    """CMA-ES (Hansen and Ostermeier 2001; pycma) in coordinates in which the prior is a standard normal."""
    search = cma.CMAEvolutionStrategy(
        np.zeros(prior.dim), 1.0, {"seed": seed + 1, "verbose": -9, "tolfun": 0, "tolx": 0, "tolflatfitness": 10**6}
    )
    constrain = jax.jit(jax.vmap(prior.constrain))
    rows, spent, used, generation = [], 0.0, 0, 0
    losses_at(problem, constrain(jnp.zeros((search.popsize, prior.dim))), cal.seeds(0, (search.popsize, 1)))
    while used + search.popsize <= simulations:
        start = time.perf_counter()
        points = search.ask()
        words = cal.seeds(seed, (search.popsize, 1), stream=100 + generation)
        losses = losses_at(problem, constrain(jnp.asarray(np.stack(points), jnp.float32)), words)
        search.tell(points, np.where(np.isfinite(losses), losses, np.nanmax(losses) + 1).tolist())
        spent += time.perf_counter() - start
        used += search.popsize
        generation += 1
        if used >= (len(rows) + 1) * simulations // PARTS or used + search.popsize > simulations:
            values = jax.tree.map(lambda x: x[0], constrain(jnp.asarray(search.mean[None], jnp.float32)))
            loss, error = centre_loss(problem, values)
            rows.append({"simulations": used, "forward_runs": used, "seconds": spent, "loss": loss, "error": error})
    return rows


def cost_of_a_gradient(problem: cal.Problem, prior: cal.Prior, method: Any) -> float:
    """Time of losses with gradients over time of losses alone."""
    values, words = prior.sample(jax.random.key(0), 5), cal.seeds(0, (5, 1))

    def total(values: Any) -> Any:
        out = cal.expect(problem, values, seeds=words, mode=method.mode, horizon=method.horizon, simulations_at_once=1)
        return jnp.sum(out.losses)

    def seconds(run: Any) -> float:
        jax.block_until_ready(run(values))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(run(values))
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    return seconds(jax.jit(jax.grad(total))) / seconds(jax.jit(total))


def picture(kept: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for k, (name, runs) in enumerate(kept["methods"].items()):
        for i, rows in enumerate(runs.values()):
            loss = [row["loss"] for row in rows]
            for axis, x in zip(axes, ("simulations", "forward_runs", "seconds"), strict=True):
                label = name if i == 0 else None
                axis.plot([row[x] for row in rows], loss, "o-", ms=2.5, lw=1, color=f"C{k}", label=label)
                axis.set(xlabel=x.replace("_", " "), yscale="log")
                axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss at the centre, fresh seeds")
    axes[0].legend(fontsize=8, frameon=False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["town", "london"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scale", type=float, default=0.005)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(f"studies/out/gradients_pay_{arguments.problem}")
    stored = out.with_suffix(".json")
    stored.parent.mkdir(parents=True, exist_ok=True)
    problem, prior, base = build(arguments)
    settings = {"problem": arguments.problem, "scale": arguments.scale, "simulations": arguments.simulations}
    kept = json.loads(stored.read_text()) if stored.exists() else {"settings": settings, "methods": {}, "cost": {}}
    if kept["settings"] != settings:
        parser.error(f"{stored} holds results of other settings, {kept['settings']}: give another --out.")
    n = arguments.simulations
    # Whatever the configuration recommends, all methods here differ in the gradient alone.
    if arguments.problem == "town":
        base = dataclasses.replace(base, weight=0.2, learning_rate=1e-2)
    pathwise = {"estimator": cal.estimators.Pathwise(), "mode": cal.CheckpointedReverseMode(), "simulations": 5}
    black_box = {"horizon": cal.FullHorizon(), "mode": cal.ReverseMode()}
    longest = cal.FullHorizon() if arguments.problem == "town" else cal.GeometricHorizon(0.9)
    methods = {
        "pathwise": {**pathwise, "horizon": longest},
        "pathwise, H = 0": {**pathwise, "horizon": cal.SlidingHorizon(0)},
        # A gradient of all coordinates takes many runs, so there are few of them, and each may move further.
        "differences": {
            **black_box,
            "estimator": cal.FiniteDifferences(),
            "simulations": 1,
            "learning_rate": 5e-2,
            "final_learning_rate": 5e-3,
        },
        "flow score": {**black_box, "estimator": cal.FlowScore(), "simulations": 5},
        "CMA-ES": None,
    }
    if arguments.problem == "london":
        del methods["pathwise, H = 0"]  # slow, and no better than the discount in what was tried
    for name, change in methods.items():
        runs = kept["methods"].setdefault(name, {})
        if change is not None and name not in kept["cost"]:
            measured = (
                1.0
                if name in ("differences", "flow score")
                else cost_of_a_gradient(problem, prior, dataclasses.replace(base, **change))
            )
            kept["cost"][name] = measured
        for seed in range(arguments.seeds):
            if str(seed) in runs:
                continue
            if change is None:
                runs[str(seed)] = evolution(problem, prior, seed, n)
            else:
                runs[str(seed)] = variational(problem, prior, base, seed, n, kept["cost"][name], change)
            write_text(stored, json.dumps(kept, indent=1) + "\n")
            last = runs[str(seed)][-1]
            print(
                f"{name:24s} seed {seed}: loss {last['loss']:.4g} ± {last['error']:.2g} in {last['seconds']:.0f} s",
                flush=True,
            )
    picture(kept, out.with_suffix(".png"))
    print(f"\n| method | forward runs a simulation | loss at the end, by seed | seconds |\n{'| --- ' * 4}|")
    for name, runs in kept["methods"].items():
        ends = [rows[-1] for rows in runs.values()]
        print(
            f"| {name} | {kept['cost'].get(name, 1):.1f} | {', '.join(format(e['loss'], '.3g') for e in ends)} | "
            f"{np.mean([e['seconds'] for e in ends]):.0f} |"
        )


if __name__ == "__main__":
    main()
