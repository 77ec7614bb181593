"""Posteriors that are samples: draws of Markov chains, and weighted particles. They have no density."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Bool, Float, Int


class AbstractSamples(AbstractDistribution):
    """Points in the coordinates, drawn from with replacement. The log-density of draws is NaN: there is none."""

    def _log_prob(self, x, condition=None):
        raise ValueError(
            f"A posterior that is made of samples ({type(self).__name__}) has no density; "
            "use its draws, or a method that fits one (GVI, Point)."
        )

    def _sample_and_log_prob(self, key, condition=None):
        x = self._sample(key, condition)
        return x, jnp.full((), jnp.nan, x.dtype)


class Chains(AbstractSamples):
    """The kept states of Markov chains, equally weighted.

    **Arguments:** `points`, room for the states; `count`, how many of each chain are there yet, from the first. While
    there are none, all points count: they are what the chains may start at.
    """

    points: Float[Array, "chains draws dim"]
    count: Int[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, points: Array, count: Array):
        self.points, self.count = points, count
        self.shape, self.cond_shape = points.shape[2:], None

    def _sample(self, key, condition=None):
        chains, draws = self.points.shape[:2]
        chain, draw = jax.random.split(key)
        last = jnp.where(self.count > 0, self.count, draws)
        return self.points[jax.random.randint(chain, (), 0, chains), jax.random.randint(draw, (), 0, last)]


class Particles(AbstractSamples):
    """Weighted points.

    **Arguments:** `points`; `log_weights`, up to a constant, -inf for points that count for nothing. One at least is
    finite, or draws are of the first point alone.
    """

    points: Float[Array, "particles dim"]
    log_weights: Float[Array, " particles"]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, points: Array, log_weights: Array):
        self.points, self.log_weights = points, log_weights
        self.shape, self.cond_shape = points.shape[1:], None

    def _sample(self, key, condition=None):
        return self.points[jax.random.categorical(key, self.log_weights)]

    @property
    def alive(self) -> Bool[Array, " particles"]:
        """Which points count."""
        return jnp.isfinite(self.log_weights)
