"""What a black box loses: one SIR epidemic written in NumPy and in JAX, calibrated to the same data.

Three ways, each from several seeds: the NumPy simulator, of which losses alone are known (`FlowScore`, worker
processes); the model in JAX by the same estimator; and the model in JAX by its derivative (straight-through). The two
simulators draw different numbers from the same process, so the first two posteriors differ by Monte Carlo error alone.
It is tested by Welch's t of the means and standard deviations over seeds, and by the energy distance between the two
groups of posteriors, with an exact permutation of their seeds.

    python studies/black_box_sir.py [--tiny] [--seeds 6]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import functools
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cells
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path
from calibrant.networks import random_groups

TRUTH = {"beta": 0.4, "gamma": 0.1}
_KEPT = 100  # draws of a posterior that are kept


def epidemic(params: dict[str, Any], seed: int, *, agents: int, days: int) -> dict[str, np.ndarray]:
    """The process of `calibrant.models.SIR` in one mixed group, by counts instead of agents."""
    rng = np.random.default_rng(seed)
    whole = int(params["initial"])
    infected = whole + int(rng.random() < params["initial"] - whole)
    susceptible = agents - infected
    heals = -np.expm1(-params["gamma"])
    out = np.empty((2, days))
    for day in range(days):
        caught = rng.binomial(susceptible, -np.expm1(-params["beta"] * infected / (agents - 1)))
        infected += caught - rng.binomial(infected, heals)
        susceptible -= caught
        out[:, day] = infected, agents - susceptible - infected
    return {"infected": out[0], "recovered": out[1]}


@functools.cache  # one object, one compilation
def models(agents: int, days: int) -> dict[str, cal.AbstractModel]:
    mixed = cal.models.SIR(random_groups(agents, agents))
    outputs = {"infected": days, "recovered": days}
    run = functools.partial(epidemic, agents=agents, days=days)
    return {"jax": mixed, "numpy": cal.BlackBox(run, parameters=mixed.Params, outputs=outputs)}


#: arm -> (simulator, estimator)
ARMS: dict[str, tuple[str, Any]] = {
    "NumPy, FlowScore": ("numpy", cal.FlowScore()),
    "JAX, FlowScore": ("jax", cal.FlowScore()),
    "JAX, straight-through": ("jax", cal.estimators.Pathwise()),
}


def fit(arm: str, seed: int, agents: int, days: int, updates: int) -> dict[str, Any]:
    kind, estimator = ARMS[arm]
    both = models(agents, days)
    data = cal.simulate(both["jax"], both["jax"].Params(**TRUTH), seed=1, steps=days).outputs
    streams = cal.losses.Streams(dict.fromkeys(data, cal.losses.GaussianLogLikelihood(0.05 * agents)))
    problem = cal.Problem(both[kind], data, cal.losses.MarginalLikelihood(streams), steps=days)
    method = cal.GVI(
        estimator=estimator,
        simulations=20,
        replicates=5,
        max_updates=updates,
        learning_rate=4e-2,
        final_learning_rate=2e-3,
        evaluate_every=max(1, updates // 4),
        evaluation_simulations=50,
        family=cal.posteriors.FullRankGaussian(),
    )
    start = time.perf_counter()
    own = 1000 * list(ARMS).index(arm) + seed  # no flow noise in common, which would make the arms alike
    result = cal.calibrate(problem, cal.Prior.of(problem, free=list(TRUTH)), method=method, seed=own, progress=False)
    seconds = time.perf_counter() - start
    draws = {name: np.log(np.asarray(x, float)) for name, x in result.sample(seed, 4000).items()}
    return {
        "mean": {name: float(x.mean()) for name, x in draws.items()},
        "sd": {name: float(x.std()) for name, x in draws.items()},
        "draws": np.round(np.stack([draws[n][:_KEPT] for n in TRUTH], axis=1), 5).tolist(),
        "objective": result.evaluation["objective"],
        "simulations": result.n_simulations,
        "failed": result.n_failed,
        "seconds": seconds,
        "first_updates": result.timings["first_updates"],
    }


def welch(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of means over its standard error."""
    return float((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


def energy_test(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """p-value of the energy distance (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143: 1249-1272) between two
    groups of samples, over all ways to deal the samples to groups of these sizes."""
    everything = np.stack(a + b)
    scale = everything.reshape(-1, everything.shape[-1]).std(0)
    x = everything / scale
    between = np.array([[np.linalg.norm(p[:, None] - q[None], axis=-1).mean() for q in x] for p in x])

    def distance(group: tuple[int, ...]) -> float:
        g = np.array(group)
        h = np.array([i for i in range(len(x)) if i not in group])
        mean = {k: between[np.ix_(i, j)].mean() for k, (i, j) in {"gh": (g, h), "gg": (g, g), "hh": (h, h)}.items()}
        return float(2 * mean["gh"] - mean["gg"] - mean["hh"])

    dealt = [distance(g) for g in itertools.combinations(range(len(x)), len(a))]
    return float(np.mean(np.array(dealt) >= dealt[0] - 1e-12))


def report(results: dict[str, Any], arms: list[str], seeds: int) -> str:
    cells = {arm: [results[f"{arm}, seed {s}"] for s in range(seeds)] for arm in arms}
    lines = ["| | log beta | log gamma | objective | simulations | s |", "| --- " * 6 + "|"]
    for arm, got in cells.items():

        def shown(name: str, got: Any = got) -> str:
            mean = np.array([c["mean"][name] for c in got])
            sd = np.array([c["sd"][name] for c in got])
            n = np.sqrt(len(got))
            return f"{mean.mean():.3f} ± {mean.std(ddof=1) / n:.3f}, sd {sd.mean():.3f} ± {sd.std(ddof=1) / n:.3f}"

        objective = np.mean([c["objective"] for c in got])
        seconds = np.median([c["seconds"] for c in got])
        simulations = got[0]["simulations"]
        lines.append(
            f"| {arm} | {shown('beta')} | {shown('gamma')} | {objective:.2f} | {simulations:,} | {seconds:.0f} |"
        )
    numpy, *others = arms
    for arm in others:
        t = {
            f"{what} of {name}": welch(*(np.array([c[what][name] for c in cells[x]]) for x in (numpy, arm)))
            for what in ("mean", "sd")
            for name in TRUTH
        }
        p = energy_test(*([np.array(c["draws"]) for c in cells[x]] for x in (numpy, arm)))
        shown_t = ", ".join(f"{k} {v:+.1f}" for k, v in t.items())
        lines.append(f"\n{numpy} against {arm}: t {shown_t}; energy test p = {p:.2f}")
    return "\n".join(lines)


def picture(results: dict[str, Any], arms: list[str], seeds: int, path: Path) -> None:
    figure = Figure(figsize=(4.5 * len(TRUTH), 3.2), layout="constrained")
    axes = figure.subplots(1, len(TRUTH), squeeze=False)[0]
    for axis, (name, truth) in zip(axes, TRUTH.items(), strict=True):
        for row, arm in enumerate(arms):
            for s in range(seeds):
                cell = results[f"{arm}, seed {s}"]
                mean, sd = cell["mean"][name], cell["sd"][name]
                y = row + 0.5 * ((s + 0.5) / seeds - 0.5)
                low, high = np.exp(mean - 1.645 * sd), np.exp(mean + 1.645 * sd)
                axis.plot([low, high], [y, y], color=f"C{row}", lw=1.5)
                axis.plot(np.exp(mean), y, "o", color=f"C{row}", ms=3)
        axis.axvline(truth, color="0.4", lw=0.8, ls="--")
        axis.set_xlabel(f"{name} (1/day): mean and 90%, a line a seed")
        axis.set_yticks(range(len(arms)), arms if axis is axes[0] else [""] * len(arms))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two seeds of two updates, both simulators by FlowScore")
    parser.add_argument("--seeds", type=int, default=6, help="fits of each way, at least 2")
    parser.add_argument("--out", type=Path, default=Path("studies/out/black_box_sir"))
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        parser.error("--seeds is at least 2: a standard error needs two")
    agents, days, updates, seeds = (40, 6, 2, 2) if arguments.tiny else (500, 40, 250, arguments.seeds)
    arms = list(ARMS)[:2] if arguments.tiny else list(ARMS)
    settings = {"agents": agents, "days": days, "updates": updates}
    cells = Cells(arguments.out.with_suffix(".json"), settings)
    every = itertools.product(range(seeds), arms)
    cells.run([(f"{arm}, seed {s}", functools.partial(fit, arm, s, agents, days, updates)) for s, arm in every])
    picture(cells.results, arms, seeds, arguments.out.with_suffix(".png"))
    print(report(cells.results, arms, seeds))


if __name__ == "__main__":
    main()
