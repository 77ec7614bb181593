"""Coordinates seen through a fitted flow: a run's posterior is the standard normal in them."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import paramax
from flowjax.bijections import AbstractBijection
from flowjax.distributions import StandardNormal, Transformed
from jax.scipy.stats import norm
from jaxtyping import Array

from calibrant._prior import Prior
from calibrant.posteriors import Posterior


class Through(Prior):
    """A prior in the coordinates `u` in which a posterior is standard normal: `theta = constrain(T(u))`, T its flow.

    **Arguments:** `posterior`; `learnt`, whether the posterior is also the prior (standard normal in `u`), or the
    posterior's own prior is, pulled back by the change of variables.

    **Raises:** `ValueError` for a posterior that is no flow over a standard normal.
    """

    base: Prior
    bijection: AbstractBijection
    learnt: bool = eqx.field(static=True)

    def __init__(self, posterior: Posterior, *, learnt: bool):
        flow: Any = paramax.unwrap(posterior.flow)
        if not (isinstance(flow, Transformed) and isinstance(flow.base_dist, StandardNormal)):
            raise ValueError(
                f"Refits near a posterior need a flow over a standard normal, got {type(flow).__name__}; "
                "draw the data sets from the prior instead."
            )
        self.names, self.coordinates = posterior.prior.names, posterior.prior.coordinates
        self.base, self.bijection, self.learnt = posterior.prior, flow.bijection, learnt

    @property
    def is_standard(self):
        return self.learnt

    def coordinates_of(self, u: Array) -> Array:
        """`u` to the coordinates of the posterior's prior, one point."""
        return self.bijection.transform(u)

    def constrain(self, z):
        return self.base.constrain(self.bijection.transform(z))

    def unconstrain(self, values: Mapping[str, Array]):
        return self.bijection.inverse(self.base.unconstrain(values))

    def log_base(self, z):
        if self.learnt:
            return jnp.sum(norm.logpdf(z))
        moved, log_det = self.bijection.transform_and_log_det(z)
        return self.base.log_base(moved) + log_det

    def log_prob(self, values):
        if not self.learnt:
            return self.base.log_prob(values)
        z = self.base.unconstrain(values)
        u, log_det = self.bijection.inverse_and_log_det(z)
        return jnp.sum(norm.logpdf(u)) + log_det - self.base.log_base(z) + self.base.log_prob(values)

    def sample(self, key, n):
        if not self.learnt:
            return self.base.sample(key, n)
        return jax.vmap(self.constrain)(jax.random.normal(key, (n, self.dim)))
