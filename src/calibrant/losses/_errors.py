"""Squared errors."""

import equinox as eqx
import jax.numpy as jnp

from calibrant.losses._base import (
    AbstractLoss,
    AbstractPointwiseLoss,
    masked_mean,
    matched,
    refuse_below,
    require_positive,
)


class MeanSquaredError(AbstractPointwiseLoss):
    """`mean((x - y)^2 / scale^2)` over what was observed."""

    scale: float = 1.0

    averaged = True

    def each(self, x, y, params):
        return ((x - y) / self.scale) ** 2


class LogMeanSquaredError(AbstractPointwiseLoss):
    """`mean((log10(x + offset) - log10(y + offset))^2)`, the loss of the JUNE experiments of arXiv 2307.01085."""

    offset: float = 1.0

    averaged = True

    def __check_init__(self):
        require_positive(self.offset, "The offset of LogMeanSquaredError")

    def check(self, data):
        refuse_below(data, 0.0, "LogMeanSquaredError")

    def each(self, x, y, params):
        return (jnp.log10(x + self.offset) - jnp.log10(y + self.offset)) ** 2


class SquaredErrorOfMean(AbstractLoss):
    """`mean((mean_r(x_r) - y)^2 / scale^2)`: of the ensemble's mean, so simulation noise is no misfit."""

    scale: float = eqx.field(default=1.0)

    per_simulation = False
    min_replicates = 1

    def __call__(self, simulations, data, params):
        x, y, seen = matched(jnp.mean(simulations, axis=0), data, "SquaredErrorOfMean")
        return masked_mean(((x - y) / self.scale) ** 2, seen)
