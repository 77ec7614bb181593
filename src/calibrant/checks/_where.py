"""Where data sets are simulated: at draws of the prior, or near the data.

A check of calibration is exact only if the truth is drawn from the prior that the refit uses. So the two choices change
both.
"""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from calibrant._prior import Prior
from calibrant.checks._local import Through
from calibrant.inference import GVI
from calibrant.posteriors import FullRankGaussian, Posterior


class AbstractWhere(eqx.Module):
    """Where truths are drawn, what prior the refits have, and where they start."""

    @abc.abstractmethod
    def prior(self, posterior: Posterior) -> Prior:
        """The prior of truths and refits, in whose coordinates the refits run."""

    @abc.abstractmethod
    def own(self, posterior: Posterior) -> Prior:
        """The prior of the run, in those coordinates."""

    @abc.abstractmethod
    def method(self, method: GVI) -> GVI:
        """The run's method with the updates, learning rate and family of a refit."""

    @abc.abstractmethod
    def sentence(self) -> str:
        """What is checked, in words."""

    def draw(self, key: Array, n: int, prior: Prior) -> Array:
        """`n` draws of the prior in the coordinates of the refits."""
        if prior.is_standard:
            return jax.random.normal(key, (n, prior.dim))
        return jax.vmap(prior.unconstrain)(prior.sample(key, n))


class PriorDraws(AbstractWhere):
    """Truths are draws of the prior, and refits start there: simulation-based calibration as Talts et al. (2018) have
    it. It is a statement about the method over everything the prior thinks possible, and takes whole calibrations:
    `updates` of each, as many as the run's by default."""

    updates: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"PriorDraws needs one update or more, got {self.updates}.")

    def prior(self, posterior):
        return posterior.prior

    def own(self, posterior):
        return posterior.prior

    def method(self, method):
        return dataclasses.replace(method, max_updates=self.updates or method.max_updates)

    def sentence(self):
        return "truths are draws of the prior, and so is the start of every refit"


class NearData(AbstractWhere):
    """Truths are draws of the run's posterior, which is also the prior of the refits, and their start.

    Drawing truths from the posterior and refitting with the run's own prior would be wrong: the truth is then no draw
    of the refit's prior, and ranks are not uniform even for exact posteriors. Posterior simulation-based calibration
    (Säilynoja, Schmitt, Bürkner, Vehtari 2025, arXiv 2502.03279) refits to observed and synthetic data together;
    taking the run's posterior as the prior of the synthetic data is the same where the run is right, needs no second
    likelihood, and is exactly valid whatever the run's posterior is. It is a statement about the method (loss, weight,
    gradients, flow) at the values that matter, and not about where the run's posterior lies.
    """

    updates: int = eqx.field(default=50, static=True)
    learning_rate: float = 2e-2

    def __check_init__(self):
        if not self.updates >= 1 or not self.learning_rate > 0:
            raise ValueError("NearData needs one update or more and a positive learning rate.")

    def prior(self, posterior):
        return Through(posterior, learnt=True)

    def own(self, posterior):
        return Through(posterior, learnt=False)

    def method(self, method):
        family = FullRankGaussian() if isinstance(method.family, FullRankGaussian) else method.family
        return dataclasses.replace(
            method,
            max_updates=self.updates,
            optimiser=None,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate / 20,
            family=family,
        )

    def sentence(self):
        return "truths are draws of the run's posterior, which is the prior of every refit, and its start"


def to_prior_coordinates(prior: Prior, u: Array) -> Array:
    """Coordinates of refits, shape (..., dim), to those of the run's prior."""
    if not isinstance(prior, Through):
        return u
    flat = jnp.reshape(u, (-1, u.shape[-1]))
    return jnp.reshape(jax.vmap(prior.coordinates_of)(flat), u.shape)
