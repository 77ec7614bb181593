"""The asset-pricing model of Brock and Hommes (1998), "Heterogeneous beliefs and routes to chaos in a simple asset
pricing model", Journal of Economic Dynamics and Control 22: 1235-1274, with four strategies.

The price, as a deviation from its fundamental, follows

    x_{t+1} = (1/R) (sum_h n_{h,t+1} (g_h x_t + b_h) + eps_{t+1}),          eps ~ Normal(0, sigma^2)
    n_{h,t+1} = exp(beta U_{h,t}) / sum_h' exp(beta U_{h',t})
    U_{h,t} = (x_t - R x_{t-1}) (g_h x_{t-2} + b_h - R x_{t-1})

with g_1 = b_1 = b_4 = 0, g_4 = 1.01, R = 1.01, sigma = 0.04, beta = 120. (Code in circulation sets R = 2 by mistake.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params, parameter

_unit = dist.Uniform(0.0, 1.0)


class BrockHommesParams(Params):
    g2: Float[Array, ""] = parameter(0.9, prior=_unit, description="trend of strategy 2")
    b2: Float[Array, ""] = parameter(0.2, prior=_unit, description="bias of strategy 2")
    g3: Float[Array, ""] = parameter(0.9, prior=_unit, description="trend of strategy 3")
    b3: Float[Array, ""] = parameter(-0.2, prior=dist.Uniform(-1.0, 0.0), description="bias of strategy 3")


class _Market(eqx.Module):
    """The constants, and the two formulas the forms of the model share."""

    R: float = eqx.field(default=1.01, static=True)
    sigma: float = eqx.field(default=0.04, static=True)
    beta: float = eqx.field(default=120.0, static=True)
    g4: float = eqx.field(default=1.01, static=True)

    def strategies(self, params) -> tuple[Array, Array]:
        zero = jnp.zeros_like(params.g2)
        g = jnp.stack([zero, params.g2, params.g3, zero + self.g4])
        b = jnp.stack([zero, params.b2, params.b3, zero])
        return g, b

    def fractions(self, params, lags: Float[Array, "3"]) -> Float[Array, "4"]:
        """Probability of each strategy, given the last three prices, latest first."""
        g, b = self.strategies(params)
        x1, x2, x3 = lags[0], lags[1], lags[2]
        fitness = (x1 - self.R * x2) * (g * x3 + b - self.R * x2)
        return jax.nn.softmax(self.beta * fitness)

    def next_mean(self, params, fractions: Float[Array, "4"], lags: Float[Array, "3"]) -> Float[Array, ""]:
        g, b = self.strategies(params)
        return jnp.sum(fractions * (g * lags[0] + b)) / self.R


class BrockHommes(AbstractModel):
    """The market of `agents` traders who each choose one of four strategies at random at every step.

    `agents=None` is the mean-field form, in which the fractions are their expectations. The first three prices are 0
    and not part of the output, so `T = 100` prices are 97 steps. Outputs: prices, shape (steps,).
    """

    agents: int | None = eqx.field(default=1000, static=True)
    market: _Market = _Market()

    Params = BrockHommesParams

    def __check_init__(self):
        if self.agents is not None and not (isinstance(self.agents, int) and self.agents >= 1):
            raise ValueError(f"BrockHommes needs at least one agent, or None for the mean field, got {self.agents}.")

    def init(self, params, rng):
        return jnp.zeros((3,), params.g2.dtype)

    def step(self, params, state, inputs_t, rng):
        fractions = self.market.fractions(params, state)
        if self.agents is not None:
            choices = rng.categorical(fractions, site="strategy", shape=(self.agents,))
            fractions = jnp.mean(choices, axis=0)
        shock = self.market.sigma / self.market.R * rng.normal("shock", dtype=state.dtype)
        price = self.market.next_mean(params, fractions, state) + shock
        return jnp.concatenate([price[None], state[:2]])

    def observe(self, params, state, inputs_t, rng):
        return state[0]

    @property
    def n_agents(self):
        return self.agents

    @property
    def default_steps(self):
        return 97


class BrockHommesForecast(AbstractModel):
    """One-step-ahead forecasts of the mean-field market, whose likelihood is tractable.

    Given the true past, the next price is Normal(forecast, (sigma / R)^2): with `losses.GaussianLogLikelihood` of that
    scale and weight 1 the generalised posterior is the exact one.

    `inputs`: the last three prices before each observation, shape (steps, 3), latest first; `lagged` makes them.
    Outputs: forecasts, shape (steps,).
    """

    market: _Market = _Market()

    Params = BrockHommesParams

    @property
    def noise(self) -> float:
        """Standard deviation of a price around its forecast."""
        return self.market.sigma / self.market.R

    @staticmethod
    def lagged(prices: Float[Array, " steps"]) -> Float[Array, "steps 3"]:
        """The three prices before each of `prices`, latest first, the first three of the market being 0."""
        padded = jnp.concatenate([jnp.zeros((3,), prices.dtype), prices])
        n = prices.shape[0]
        return jnp.stack([padded[2 : 2 + n], padded[1 : 1 + n], padded[:n]], axis=-1)

    def init(self, params, rng):
        return jnp.zeros((), params.g2.dtype)

    def step(self, params, state, inputs_t, rng):
        lags = inputs_t.astype(state.dtype)
        return self.market.next_mean(params, self.market.fractions(params, lags), lags)

    def observe(self, params, state, inputs_t, rng):
        return state
