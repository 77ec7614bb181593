"""A model whose posterior is known: a line observed with normal noise, and a parameter that does nothing."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flowjax.bijections import TriangularAffine
from flowjax.distributions import StandardNormal, Transformed
from jaxtyping import Array, Float

import calibrant as cal

STEPS = 6
SCALE = 0.8
#: What multiplies each parameter in every output; the prior of each is Normal(0, 1).
DESIGN = np.stack([np.ones(STEPS), np.linspace(-1, 1, STEPS), np.zeros(STEPS)], axis=1)
MISSING = 4


class LineParams(cal.Params):
    level: Float[Array, ""] = cal.parameter(0.5, prior=dist.Normal(0.0, 1.0))
    slope: Float[Array, ""] = cal.parameter(-1.0, prior=dist.Normal(0.0, 1.0))
    idle: Float[Array, ""] = cal.parameter(0.0, prior=dist.Normal(0.0, 1.0))


class Line(cal.AbstractModel):
    """`level + slope t`, t from -1 to 1, with noise of its own if asked."""

    noise: float = eqx.field(default=0.0, static=True)

    Params = LineParams

    def init(self, params, rng):
        return jnp.full((), -1.0 - 2 / (STEPS - 1), params.level.dtype), jnp.zeros((), params.level.dtype)

    def step(self, params, state, inputs_t, rng):
        return state[0] + 2 / (STEPS - 1), self.noise * rng.normal("noise", dtype=params.level.dtype)

    def observe(self, params, state, inputs_t, rng):
        return params.level + params.slope * state[0] + 0 * params.idle + state[1]

    @property
    def default_steps(self):
        return STEPS


def data():
    y = DESIGN @ np.array([0.5, -1.0, 0.0]) + SCALE * np.random.default_rng(3).normal(size=STEPS)
    y[MISSING] = np.nan
    return y


def exact(y, scale=SCALE):
    """Mean and covariance of the posterior."""
    seen = np.isfinite(y)
    precision = np.eye(3) + DESIGN[seen].T @ DESIGN[seen] / scale**2
    covariance = np.linalg.inv(precision)
    return covariance @ DESIGN[seen].T @ y[seen] / scale**2, covariance


def problem(loss=None, noise=0.0):
    return cal.Problem(Line(noise), data(), cal.losses.GaussianLogLikelihood(SCALE) if loss is None else loss)


def posterior(it, *, width=1.0, shift=0.0):
    """The exact posterior, or what was made of it."""
    mean, covariance = exact(np.asarray(it.data))
    flow = Transformed(
        StandardNormal((3,)),
        TriangularAffine(
            jnp.asarray(mean + shift * np.sqrt(np.diag(covariance)), dtype=float),
            jnp.asarray(width * np.linalg.cholesky(covariance), dtype=float),
        ),
    )
    return cal.Posterior(cal.Prior.of(it), flow)
