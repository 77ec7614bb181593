"""Volatility clustering from investor inertia: R. Cont (2007), "Volatility clustering in financial markets: empirical
facts and agent-based models", in Teyssiere and Kirman (eds.), Long Memory in Economics, Springer, section 4; Ghoulmie,
Cont and Nadal (2005), J. Phys.: Condens. Matter 17: S1259.

Every day news `e_t ~ Normal(0, news^2)` reach all traders alike. Trader `i` buys if `e_t > v_i`, sells if `e_t < -v_i`
and otherwise waits. The return is their excess demand over depth, and with probability `update` a trader takes its size
as a new threshold:

    r_t = (buyers - sellers) / (N depth),        v_i <- |r_t| with probability `update`

Since the news are common, all who act are on one side: `r_t = sign(e_t) (number who act) / (N depth)`. Here a trader
judges the size of the news with logistic noise of his own, of scale `news / sharpness`: he acts with probability
`sigmoid((|e_t| - v_i) sharpness / news)`, and the published market is the limit of a large `sharpness`. A comparison of
common news with a threshold has no derivative, a decision with a probability has one. (Differentiable versions in
circulation use this sigmoid for the derivative alone, of another function than the one that is simulated, and some give
every trader news of his own, which average to no return at all.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params, parameter

_LN10 = 2.302585092994046


def _about(value: float, decades: float = 0.4) -> dist.Distribution:
    """Log-normal around `value`, with a standard deviation of so many powers of ten."""
    return dist.LogNormal(jnp.log(value), decades * _LN10)


class ThresholdMarketParams(Params):
    threshold: Float[Array, ""] = parameter(0.1, prior=_about(0.1), description="median of the first thresholds")
    spread: Float[Array, ""] = parameter(0.5, prior=_about(0.5), description="sd of the log of the first thresholds")
    news: Float[Array, ""] = parameter(0.5, prior=_about(0.5), description="standard deviation of the news")
    depth: Float[Array, ""] = parameter(0.2, prior=_about(0.2), description="market depth")
    update: Float[Array, ""] = parameter(0.1, description="probability a day of a new threshold")


class ThresholdMarketState(eqx.Module):
    thresholds: Float[Array, " agents"]
    last: Float[Array, ""]


class ThresholdMarket(AbstractModel):
    """Cont's market of `agents` traders, who act only on news that exceed their thresholds.

    **Arguments:** `agents`; `sharpness`, of their judgement of the news (above).

    Outputs: returns, shape (steps,).
    """

    agents: int = eqx.field(default=1000, static=True)
    sharpness: float = eqx.field(default=50.0, static=True)

    Params = ThresholdMarketParams

    def __check_init__(self):
        if not isinstance(self.agents, int) or self.agents < 1:
            raise ValueError(f"ThresholdMarket needs at least one agent, got {self.agents}.")
        if not self.sharpness > 0:
            raise ValueError(f"ThresholdMarket needs a positive sharpness, got {self.sharpness}.")

    def init(self, params, rng):
        z = rng.normal("first thresholds", (self.agents,), dtype=params.spread.dtype)
        return ThresholdMarketState(params.threshold * jnp.exp(params.spread * z), jnp.zeros((), z.dtype))

    def step(self, params, state, inputs_t, rng):
        v = state.thresholds
        news = params.news * rng.normal("news", dtype=v.dtype)
        acts = rng.bernoulli(jax.nn.sigmoid((jnp.abs(news) - v) * self.sharpness / params.news), site="order")
        moved = jnp.sign(news) * jnp.mean(acts) / params.depth
        renews = rng.bernoulli(params.update, site="update", shape=(self.agents,))
        return ThresholdMarketState(renews * jnp.abs(moved) + (1 - renews) * v, moved)

    def observe(self, params, state, inputs_t, rng):
        return state.last

    @property
    def n_agents(self):
        return self.agents

    @property
    def default_steps(self):
        return 100
