"""Random walk: the smallest model with a discrete draw and a known posterior."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params, parameter


class RandomWalkParams(Params):
    p: Float[Array, ""] = parameter(0.25, prior=dist.Uniform(0.0, 1.0), description="probability of a step up")


class RandomWalk(AbstractModel):
    """`walkers` independent walks on the integers from 0, up with probability `p` and down otherwise.

    Outputs: positions, shape (steps, walkers). With a uniform prior the exact posterior of `p` given the walks is
    Beta(1 + ups, 1 + downs).
    """

    walkers: int = eqx.field(default=1, static=True)

    Params = RandomWalkParams

    def init(self, params, rng):
        del rng
        return jnp.zeros((self.walkers,), params.p.dtype)

    def step(self, params, state, inputs_t, rng):
        up = rng.bernoulli(params.p, site="up", shape=(self.walkers,))
        return state + 2 * up - 1

    def observe(self, params, state, inputs_t, rng):
        return state

    @property
    def n_agents(self):
        return self.walkers

    @property
    def default_steps(self):
        return 100
