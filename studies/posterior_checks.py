"""Checks of posteriors that are known, and of the same posteriors made wrong: do the checks tell them apart?

For each model 300 data sets are simulated at draws of the prior. Their posteriors are checked as they are, 30% too
narrow, 30% too wide, and shifted by half a standard deviation (around the median, in the coordinates of the prior; what
leaves the prior's range comes back at its end). Plain and folded ranks and joint coverage, each at 1%, fixed seed.

- `normal`: four means with correlated noise; the posterior in closed form.
- `random-walk`: 100 steps of `models.RandomWalk`; the posterior is a Beta distribution.
- `random-walk-normal`: the same from the ends of 20 walks, in the normal approximation, which is not exact: the check
  says how near it is.
- `brock-hommes`: `models.BrockHommesForecast`, whose likelihood is exact given the past; the posterior of two
  parameters on a grid, prices simulated with `models.BrockHommes(None)`.

    python studies/posterior_checks.py [--tiny] [--data-sets 300] [--out docs/img/posterior_checks]

Writes OUT.json and OUT.png.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import special, stats

import calibrant as cal
from calibrant import checks
from calibrant._files import atomic_path, write_text

DRAWS = 999
WRONGS = {"exact": (1.0, 0.0), "30% narrow": (0.7, 0.0), "30% wide": (1.3, 0.0), "shifted by half": (1.0, 0.5)}

#: Draws in unconstrained coordinates, truths, references: as `checks.calibration` takes them.
Posteriors = tuple[np.ndarray, np.ndarray, np.ndarray]


def normal(n: int, seed: int) -> Posteriors:
    dim, rng = 4, np.random.default_rng(seed)
    noise = 0.3 * (0.4 * np.eye(dim) + 0.6)
    truths = rng.normal(size=(n, dim))
    y = truths + rng.multivariate_normal(np.zeros(dim), noise, n)
    covariance = np.linalg.inv(np.eye(dim) + np.linalg.inv(noise))
    mean = y @ (covariance @ np.linalg.inv(noise)).T
    draws = mean[:, None] + rng.multivariate_normal(np.zeros(dim), covariance, (n, DRAWS))
    return draws, truths, rng.normal(size=(n, dim))


def walks(n: int, seed: int, walkers: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """True probabilities of a step up, uniform, and steps up of so many walks."""
    model = cal.models.RandomWalk(walkers)
    p = jax.random.uniform(jax.random.key(seed), (n,))

    @jax.jit
    @jax.vmap
    def ends(p, words):
        return cal.simulate(model, model.default_params.replace({"p": p}), seed=words, steps=steps).outputs[-1]

    positions = np.asarray(ends(p, cal.seeds(seed, n)), dtype=float)
    return np.asarray(p, dtype=float), ((positions + steps) / 2).sum(axis=1)


def random_walk(n: int, seed: int) -> Posteriors:
    p, ups = walks(n, seed, 1, 100)
    rng = np.random.default_rng(seed)
    draws = rng.beta(1 + ups[:, None], 1 + 100 - ups[:, None], (n, DRAWS))
    z = stats.norm.ppf(np.clip(draws, 1e-12, 1 - 1e-12))
    return z[:, :, None], stats.norm.ppf(p)[:, None], rng.normal(size=(n, 1))


def random_walk_normal(n: int, seed: int) -> Posteriors:
    """In the logit, at the mode, with the curvature there, as for many steps."""
    p, ups = walks(n, seed, 20, 100)
    rng, total = np.random.default_rng(seed), 2000
    share = (1 + ups) / (2 + total)
    sd = 1 / np.sqrt((2 + total) * share * (1 - share))
    draws = special.logit(share)[:, None] + sd[:, None] * rng.normal(size=(n, DRAWS))
    z = stats.norm.ppf(special.expit(draws))
    return z[:, :, None], stats.norm.ppf(p)[:, None], rng.normal(size=(n, 1))


def brock_hommes(n: int, seed: int, grid: int = 120) -> Posteriors:
    """`g2` and `b2` are free; the others are at their defaults."""
    market, forecast = cal.models.BrockHommes(None), cal.models.BrockHommesForecast()
    prices = jnp.zeros(market.default_steps)
    loss = cal.losses.GaussianLogLikelihood(forecast.noise)
    problem = cal.Problem(forecast, prices, loss, inputs=forecast.lagged(prices))
    prior = cal.Prior.of(problem, free=["g2", "b2"])
    truths = jax.random.normal(jax.random.key(seed), (n, 2))
    # Cells of equal prior probability, so that a cell's weight is its likelihood; a draw is uniform within its cell.
    edges = (jnp.arange(grid) + 0.5) / grid
    cells = jax.scipy.stats.norm.ppf(jnp.stack(jnp.meshgrid(edges, edges, indexing="ij"), axis=-1).reshape(-1, 2))

    no_noise: Any = None  # a forecast draws nothing

    @eqx.filter_jit
    def losses(truth: Any, words: Any) -> Any:
        params = market.Params().replace(prior.constrain(truth))
        y = cal.simulate(market, params, seed=words).outputs
        mine = eqx.tree_at(lambda p: (p.data, p.inputs), problem, (y, forecast.lagged(y)))

        def loss_at(z):
            values = prior.constrain(z)
            model = mine.with_values(values)
            out = jax.vmap(lambda lags: forecast.step(model, jnp.zeros(()), lags, no_noise))(mine.inputs)
            return mine.evaluate(out[None], values)

        return jax.lax.map(loss_at, cells, batch_size=1000)

    words, rng, draws = cal.seeds(seed, n), np.random.default_rng(seed), []
    lower = np.asarray(jax.scipy.stats.norm.cdf(cells), dtype=float) - 0.5 / grid
    for i in range(n):
        each = np.asarray(losses(truths[i], words[i]), dtype=float)
        weights = np.exp(each.min() - each)
        at = rng.choice(len(weights), DRAWS, p=weights / weights.sum())
        draws.append(stats.norm.ppf(lower[at] + rng.uniform(size=(DRAWS, 2)) / grid))
    draws = np.stack(draws)
    references = np.asarray(jax.random.normal(jax.random.key(seed + 2), (n, 2)), dtype=float)
    return draws, np.asarray(truths, dtype=float), references


MODELS: dict[str, Callable[[int, int], Posteriors]] = {
    "normal": normal,
    "random-walk": random_walk,
    "random-walk-normal": random_walk_normal,
    "brock-hommes": brock_hommes,
}


def made_wrong(draws: np.ndarray, width: float, shift: float) -> np.ndarray:
    """Wider around the median, and shifted, in each coordinate."""
    middle, sd = np.median(draws, axis=1, keepdims=True), draws.std(axis=1, keepdims=True)
    return np.clip(middle + width * (draws - middle) + shift * sd, -8, 8)


def cell(posteriors: Posteriors, width: float, shift: float) -> dict[str, Any]:
    draws, truths, references = posteriors
    check = checks.calibration(
        made_wrong(draws, width, shift), truths, references, prior_variance=np.ones(truths.shape[1])
    )
    return {
        "p": check.p,
        "tarp": check.tarp.p,
        "passed": check.passed,
        "parameters": {
            v.name: {
                "word": v.word,
                "plain": v.plain.p,
                "folded": v.folded.p,
                "factor": v.width.factor,
                "interval": list(v.width.factor_interval),
                "shift": v.width.shift,
            }
            for v in check.verdicts
        },
        "detectable": check.detectable.describe(),
    }


def picture(results: dict[str, Any]) -> Figure:
    """p-values of ranks and of joint coverage, by model and by what was done."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(results)
    for axis, key, title in zip(axes, ("p", "tarp"), ("ranks, plain and folded", "joint coverage (TARP)"), strict=True):
        for i, wrong in enumerate(WRONGS):
            p = [max(results[name][wrong][key], 1e-12) for name in names]
            axis.semilogx(p, np.arange(len(names))[::-1] + 0.12 * (1.5 - i), "o", ms=5, label=wrong)
        axis.axvline(0.01, color="#9aa3ad", lw=1, ls="--")
        axis.set_yticks(np.arange(len(names))[::-1], names)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("p-value (at least 1e-12)", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="100 data sets of two models: to see that it runs")
    parser.add_argument("--data-sets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/img/posterior_checks"))
    given = parser.parse_args(arguments)
    n = 100 if given.tiny else given.data_sets
    models = ["normal", "random-walk"] if given.tiny else list(MODELS)
    results: dict[str, Any] = {}
    for name in models:
        start = time.perf_counter()
        posteriors = MODELS[name](n, given.seed)
        results[name] = {wrong: cell(posteriors, *how) for wrong, how in WRONGS.items()}
        for wrong, r in results[name].items():
            words = ", ".join(
                f"{k} {v['word']} ({v['factor']:.2f}, {v['shift']:+.2f})" for k, v in r["parameters"].items()
            )
            print(f"{name}, {wrong}: ranks p = {r['p']:.2g}, TARP p = {r['tarp']:.2g}; {words}", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"data_sets": n, "draws": DRAWS, "seed": given.seed, "models": results}
    write_text(given.out.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    with atomic_path(given.out.with_suffix(".png")) as part:
        picture(results).savefig(part, format="png", dpi=150)


if __name__ == "__main__":
    main()
