"""What discrete draws leave behind for an estimator: sums over the draws of a time step, differentiable.

A recorder sees every draw that a model makes through `rng.bernoulli` and `rng.categorical`. Its notes leave the step
functionally, as an output of the transition, in every AD mode; no horizon cuts them.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calibrant._sampling import Draw, bernoulli_log_prob, categorical_log_prob


class AbstractRecorder(eqx.Module):
    """Notes of draws: a PyTree of arrays of fixed shapes, added up over the draws of a step."""

    @abc.abstractmethod
    def zero(self) -> PyTree[Array]:
        """The notes of no draw."""

    @abc.abstractmethod
    def bernoulli(
        self, draw: Draw, sample: Float[Array, "*n"], p: Float[Array, "*n"], where: Float[Array, "*n"]
    ) -> PyTree[Array]:
        """The notes of one draw of the event `where * p` for all agents."""

    @abc.abstractmethod
    def categorical(self, draw: Draw, sample: Float[Array, "k *n"], p: Float[Array, "k ..."]) -> PyTree[Array]:
        """The notes of one draw of a category for all agents; categories first."""


class LogProbability(AbstractRecorder):
    """The log-probability of what was drawn, a scalar."""

    def zero(self):
        return jnp.zeros(())

    def bernoulli(self, draw, sample, p, where):
        return jnp.sum(bernoulli_log_prob(sample, p, where))

    def categorical(self, draw, sample, p):
        return jnp.sum(categorical_log_prob(sample, p))
