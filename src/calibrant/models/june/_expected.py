"""Admissions and deaths as expectations: new infections by age, times severity, convolved with delays.

They are smooth in severity and delays, and follow the scan over time, so no horizon cuts them and they are free of the
noise of rare events.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.scipy.stats as stats
from jaxtyping import Array, Float

_PER_DAY = 8  # points a day of the grid on which delays are added up


def delay_distribution(stages: Sequence[tuple[Any, float]], days: int) -> Float[Array, " n"]:
    """P(floor(delay) = 0, 1, ..., days - 1) of a sum of independent log-normal stages (log-mean, log-sd).

    The stages are discretised to an eighth of a day and convolved.
    """
    n = days * _PER_DAY + 1
    total = None
    for log_mean, log_sd in stages:
        edges = (jnp.arange(n + 1) - 0.5) / _PER_DAY
        positive = jnp.maximum(edges, 1e-6)
        cdf = jnp.where(edges > 0, stats.norm.cdf((jnp.log(positive) - log_mean) / log_sd), 0)
        mass = jnp.diff(cdf)
        total = mass if total is None else jnp.convolve(total, mass)[:n]
    assert total is not None
    # A mass on the boundary between two days belongs half to each.
    inner = total[:-1].reshape(days, _PER_DAY)
    boundary = 0.5 * inner[:, 0]
    following = 0.5 * total[_PER_DAY::_PER_DAY]
    return jnp.sum(inner, axis=1) - boundary + following


def delayed(
    infections: Float[Array, "days regions bands"], probability: Float[Array, " bands"], delay: Float[Array, " days"]
) -> Float[Array, "days regions bands"]:
    """Expected events: `out[t] = sum_s infections[s] probability delay[t - s]`."""
    days = infections.shape[0]
    lag = jnp.arange(days)[:, None] - jnp.arange(days)
    kernel = jnp.where(lag >= 0, delay[jnp.maximum(lag, 0)], 0)
    return jnp.einsum("ts,srb,b->trb", kernel, infections, probability, precision="highest")
