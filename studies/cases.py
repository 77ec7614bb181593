"""The models on which gradients are compared: each with a truth, data simulated there, and three losses.

`summaries` is half the squared distance of a few summaries of the outputs in units of their standard deviation over
simulations at the truth; `errors`, the same of a whole series, averaged over time; `mmd`, maximum mean discrepancy of
pairs of consecutive values, an ensemble loss. All are used with a weight of 1.
"""

import csv
import dataclasses
import datetime as dt
import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import calibrant as cal
from calibrant.models.june import Calendar

LOSSES = ("summaries", "errors", "mmd")
_MARKETS = Path(__file__).parents[2] / "shared" / "data" / "markets" / "sp500_daily_1999_2018.csv.gz"


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem whose answer is known (`truth`, by name), unless the data are real (`truth` empty)."""

    problem: cal.Problem
    prior: cal.Prior
    truth: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Recipe:
    model: Callable[[], cal.AbstractModel]
    steps: int
    #: Of the outputs of one simulation: the series that `errors` and `mmd` compare, and a few numbers.
    series: Callable[[Any], Any]
    summaries: Callable[[Any], Any]
    fixed: dict[str, float] = dataclasses.field(default_factory=dict)
    priors: dict[str, Any] | None = None
    free: tuple[str, ...] | None = None
    real: Callable[[], np.ndarray] | None = None


def _moments(x: Any) -> Any:
    """Mean and spread of a series, and how it follows itself."""
    centred = x - jnp.mean(x)
    variance = jnp.mean(centred**2) + 1e-8
    return jnp.stack(
        [jnp.mean(x), 0.5 * jnp.log(variance), *(jnp.mean(centred[k:] * centred[:-k]) / variance for k in (1, 2))]
    )


def _clustering(r: Any) -> Any:
    """Of returns: their spread, the weight of their tails, and how long large ones stay together."""
    variance = jnp.mean(r**2) + 1e-12
    size = jnp.abs(r) - jnp.mean(jnp.abs(r))
    spread = jnp.mean(size**2) + 1e-12
    return jnp.stack(
        [
            0.5 * jnp.log(variance),
            jnp.log(jnp.mean(r**4) / variance**2),
            *(jnp.mean(size[k:] * size[:-k]) / spread for k in (1, 5, 20)),
        ]
    )


def sp500() -> np.ndarray:
    """Daily logarithmic returns of the S&P 500."""
    with gzip.open(_MARKETS, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    close = next(name for name in rows[0] if name.lower().replace(" ", "") in ("adjclose", "close"))
    return np.diff(np.log([float(row[close]) for row in rows]))


def _town() -> cal.AbstractModel:
    world = cal.worlds.build_world(5000, seed=1)
    return cal.models.June(world, Calendar(dt.date(2020, 3, 1), 30))


_MARKET_PRIORS = {
    "threshold": dist.LogNormal(np.log(0.01), 1.0),
    "news": dist.LogNormal(np.log(0.003), 1.0),
    "depth": dist.LogNormal(np.log(10.0), 0.7),
    "update": dist.LogNormal(np.log(0.03), 1.0),
}
_RECIPES = {
    "random-walk": _Recipe(
        lambda: cal.models.RandomWalk(100),
        50,
        lambda x: jnp.mean(x, axis=1),
        lambda x: jnp.mean(x, axis=1)[9::10],
    ),
    "sir": _Recipe(
        lambda: cal.models.SIR.small_world(1000),
        40,
        lambda x: x["infected"],
        lambda x: jnp.sqrt(x["infected"][3::4] + 1),
        fixed={"initial": 20.5},
        free=("beta", "gamma"),
    ),
    "boarding-school": _Recipe(
        cal.models.BoardingSchoolSIR,
        cal.models.BoardingSchoolSIR().default_steps,  # of a fraction of a day each
        lambda x: jax.tree.leaves(x)[0],
        lambda x: jnp.sqrt(jax.tree.leaves(x)[0] + 1),
    ),
    "brock-hommes": _Recipe(lambda: cal.models.BrockHommes(1000), 97, lambda x: x, _moments),
    "market": _Recipe(lambda: cal.models.ThresholdMarket(1000), 100, lambda x: x, _clustering),
    "sp500": _Recipe(
        lambda: cal.models.ThresholdMarket(1000),
        1000,
        lambda x: x,
        _clustering,
        fixed={"threshold": 0.01, "news": 0.003, "depth": 10.0, "update": 0.03},
        priors=_MARKET_PRIORS,
        free=("threshold", "news", "depth", "update"),
        real=sp500,
    ),
    "june": _Recipe(
        _town,
        30,
        lambda x: jnp.log10(1 + x["cumulative_infections"]),
        lambda x: jnp.log10(1 + x["cumulative_infections"])[4::5],
    ),
}
CASES = tuple(_RECIPES)


def available(name: str) -> bool:
    """Whether its data are here."""
    return _RECIPES[name].real is None or _MARKETS.is_file()


def _per_simulation(of: Callable[[Any], Any], at: Any, sd: Any, *, averaged: bool) -> cal.losses.CustomLoss:
    def loss(simulations: Any, data: Any, params: Any) -> Any:
        del data, params
        square = (((jax.vmap(of)(simulations) - at) / sd) ** 2).reshape(jax.tree.leaves(simulations)[0].shape[0], -1)
        return 0.5 * jnp.mean((jnp.mean if averaged else jnp.sum)(square, axis=1))

    return cal.losses.CustomLoss(loss, per_simulation=True)


class SeriesDiscrepancy(cal.losses.AbstractLoss):
    """Maximum mean discrepancy of one series of the outputs, times ten."""

    series: Callable[[Any], Any]
    mmd: cal.losses.MaximumMeanDiscrepancy

    per_simulation = False
    min_replicates = 1

    def __call__(self, simulations: Any, data: Any, params: Any) -> Any:
        del data
        return 10 * self.mmd(jax.vmap(self.series)(simulations), self.mmd.data[:, 0], params)


@functools.cache
def case(name: str, loss: str = "summaries", seed: int = 0) -> Case:
    """A case by name; `seed` draws its data."""
    recipe = _RECIPES[name]
    model = recipe.model()
    params = model.default_params.replace(recipe.fixed)

    @jax.jit
    def simulated(words: Any) -> Any:
        return jax.lax.map(lambda s: cal.simulate(model, params, seed=s, steps=recipe.steps).outputs, words)

    many = simulated(cal.seeds(1000, 64))
    data = jax.tree.map(lambda x: x[0], simulated(cal.seeds(2000 + seed, 1)))
    summaries, series = jax.vmap(recipe.summaries)(many), jax.vmap(recipe.series)(many)
    if recipe.real is None:
        at, observed = recipe.summaries(data), recipe.series(data)
    else:
        returns = jnp.asarray(recipe.real())
        at, observed = recipe.summaries(returns), returns[: recipe.steps]
        data = observed
    if loss == "summaries":
        chosen: Any = _per_simulation(recipe.summaries, at, jnp.std(summaries, axis=0) + 1e-6, averaged=False)
    elif loss == "errors":
        chosen = _per_simulation(recipe.series, observed, jnp.std(series) + 1e-6, averaged=True)
    else:
        chosen = SeriesDiscrepancy(recipe.series, cal.losses.MaximumMeanDiscrepancy(np.asarray(observed), lags=2))
    problem = cal.Problem(model, data, chosen, params=params, steps=recipe.steps)
    prior = cal.Prior.of(problem, recipe.priors, None if recipe.free is None else list(recipe.free))
    truth = {} if recipe.real else {n: float(getattr(params, n)) for n in prior.names}
    return Case(problem, prior, truth)
