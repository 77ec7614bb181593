"""Baselines of the score function: what is subtracted from a loss before it is multiplied with a score.

A baseline may depend on everything that came before a draw and on all other simulations, and on nothing that came after
it; then it changes the variance and not the mean.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calibrant.estimators._solve import solve_positive


class AbstractBaseline(eqx.Module):
    """Predicts what of the loss is still to come after each time, from the other replicates."""

    @abc.abstractmethod
    def check(self, replicates: int) -> None:
        """Refuse, with a `ValueError`, too few replicates."""

    @abc.abstractmethod
    def predict(
        self, to_come: Float[Array, "replicates times"], observed: PyTree[Array]
    ) -> Float[Array, "replicates times"]:
        """A prediction of `to_come` for each replicate and time 0 (`init`), 1, ..., steps.

        `observed` is what the model's `observe` returned, leading axes (replicates, steps).
        """


class MeanOfOthers(AbstractBaseline):
    """The mean over the other replicates (Kool, van Hoof, Welling 2019; Mnih and Rezende 2016, arXiv 1602.06725)."""

    def check(self, replicates):
        _at_least(replicates, 2, self)

    def predict(self, to_come, observed):
        n = to_come.shape[0]
        return (jnp.sum(to_come, axis=0) - to_come) / (n - 1)


class StateRegression(AbstractBaseline):
    """A linear regression, time by time, on what was observed of the state one step before.

    The regression that predicts a replicate is fitted to the others: the leave-one-out prediction of ridge regression
    in closed form, `y - (y - fit) / (1 - leverage)` (Hastie, Tibshirani, Friedman 2009, equation 7.64). At the first
    step nothing was observed before, and the prediction is the mean of the others.

    **Arguments:** `features`, a function from the observed outputs of one simulation (leading axis: time) to an array
    (times, features), all numbers by default; `ridge`, relative to the number of replicates, features having variance
    1.
    """

    features: Callable[[Any], Array] | None = None
    ridge: float = 1e-3

    def check(self, replicates):
        _at_least(replicates, 4, self)

    def predict(self, to_come, observed):
        x = before(observed, to_come.shape[1], self.features)
        if x.shape[2] > to_come.shape[0] - 3:
            raise ValueError(
                f"StateRegression has {x.shape[2]} features and {to_come.shape[0]} replicates to learn from; it needs "
                "at least three replicates more than features: give `features`, a function that sums up the state, or "
                "more replicates."
            )
        return jax.vmap(lambda y, x: left_out(y, x, self.ridge), (1, 1), 1)(to_come, x)


def before(
    observed: PyTree[Array], times: int, features: Callable[[Any], Array] | None
) -> Float[Array, "replicates times k"]:
    """What was observed of the state before each of the times 0 (`init`), 1, ..., steps: at first nothing, 0."""
    seen = jax.vmap(_flat if features is None else features)(observed)
    if seen.shape[1] != times - 1:
        raise ValueError(
            f"The features of the state have shape {seen.shape[1:]} for {times - 1} observed times; they are one row a "
            "time."
        )
    return jax.lax.stop_gradient(jnp.concatenate([jnp.zeros_like(seen[:, :1])] * 2 + [seen[:, :-1]], axis=1))


def left_out(y: Float[Array, " n"], x: Float[Array, "n k"], ridge: float) -> Float[Array, " n"]:
    """Predictions of `y` from `x` by ridge regression with an intercept, each from the fit to all others."""
    n = y.shape[0]
    centred = x - jnp.mean(x, axis=0)
    scale = jnp.sqrt(jnp.mean(centred**2, axis=0))
    moving = scale > jnp.finfo(x.dtype).eps * (1 + jnp.max(jnp.abs(x), axis=0))
    z = jnp.where(moving, centred / jnp.where(moving, scale, 1), 0)
    gram = z.T @ z + n * ridge * jnp.eye(z.shape[1], dtype=z.dtype)
    hat = z @ solve_positive(gram, z.T)
    leverage = jnp.diag(hat) + 1 / n  # below 1 by the ridge
    fit = hat @ (y - jnp.mean(y)) + jnp.mean(y)
    return y - (y - fit) / (1 - leverage)


def _flat(observed: PyTree[Array]) -> Float[Array, "times k"]:
    leaves = [x for x in jax.tree.leaves(observed) if eqx.is_inexact_array(x)]
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def _at_least(replicates: int, needed: int, baseline: AbstractBaseline) -> None:
    if replicates < needed:
        raise ValueError(
            f"{type(baseline).__name__} needs at least {needed} replicates of each parameter value, got {replicates}; "
            "set `replicates`."
        )
