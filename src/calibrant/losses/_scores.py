"""Kernel and energy distances. Bandwidths and scales are fixed from the data when the loss is built."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from calibrant.losses._base import AbstractLoss, matched


def median_distance(points: np.ndarray) -> float:
    """Median distance between distinct points: the median heuristic (Gretton et al. 2012, section 8)."""
    points = np.asarray(points, dtype=np.float64)
    distance = np.sqrt(np.sum((points[:, None] - points[None]) ** 2, axis=-1))
    median = float(np.median(distance[np.triu_indices(len(points), 1)]))
    if not median > 0:
        raise ValueError("The median heuristic needs data points that differ; give a bandwidth instead.")
    return median


def _squared_distances(a: Array, b: Array) -> Array:
    # (a - b)^2 summed, not a^2 + b^2 - 2ab, which cancels in float32 and goes negative.
    return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)


def _off_diagonal_mean(k: Array) -> Array:
    n = k.shape[0]
    return (jnp.sum(k) - jnp.trace(k)) / (n * (n - 1))


class MaximumMeanDiscrepancy(AbstractLoss):
    """Squared maximum mean discrepancy between the points of a simulated and of the observed time series.

    The unbiased estimate of Gretton et al. (2012, JMLR 13: 723-773, equation 3), with Gaussian kernel
    `exp(-|a - b|^2 / (2 bandwidth^2))`. Points are the values of the series, or with `lags = k > 1` all windows of `k`
    consecutive values, without which the order in time would not matter. The points of all replicates are pooled: one
    run of a persistent model visits only a part of its states, and with a single replicate the loss rewards parameters
    whose runs all visit the same part, whatever the model's long-run distribution.

    **Arguments:** `data`, shape (steps,) or (steps, features), without gaps; `lags`; `bandwidth`, the median distance
    between observed points by default; `bandwidth_factor`, which multiplies it. A persistent series, whose level
    wanders much further than one step moves it, needs a factor well below 1, or the kernel sees the level only (the
    docs page on losses shows a case where the median alone misleads).
    """

    data: Float[Array, "steps features"]
    bandwidth: Float[Array, ""]
    within_data: Float[Array, ""]
    lags: int = eqx.field(static=True)
    given: tuple[float | None, float] = eqx.field(static=True)

    per_simulation = False
    min_replicates = 1

    def __init__(self, data, *, lags: int = 1, bandwidth: float | None = None, bandwidth_factor: float = 1.0):
        series = np.asarray(data, dtype=np.float64)
        series = series[:, None] if series.ndim == 1 else series
        if series.ndim != 2 or not np.all(np.isfinite(series)):
            raise ValueError(
                "MaximumMeanDiscrepancy needs data of shape (steps,) or (steps, features) without gaps, "
                f"got shape {np.shape(data)}."
            )
        if not 1 <= lags <= len(series) - 2:
            raise ValueError(f"MaximumMeanDiscrepancy needs 1 <= lags <= {len(series) - 2}, got {lags}.")
        self.lags = lags
        self.given = (bandwidth, bandwidth_factor)
        self.data = jnp.asarray(series, dtype=float)
        points = np.asarray(self._points(self.data))
        width = bandwidth_factor * (median_distance(points) if bandwidth is None else bandwidth)
        if not width > 0:
            raise ValueError(f"MaximumMeanDiscrepancy needs a positive bandwidth, got {width}.")
        self.bandwidth = jnp.asarray(width, dtype=float)
        self.within_data = _off_diagonal_mean(self._kernel(jnp.asarray(points), jnp.asarray(points)))

    def with_data(self, data):
        leaves = jax.tree.leaves(data)
        if len(leaves) != 1:
            raise ValueError(f"MaximumMeanDiscrepancy is of one array, but the data have {len(leaves)}.")
        bandwidth, factor = self.given
        return MaximumMeanDiscrepancy(leaves[0], lags=self.lags, bandwidth=bandwidth, bandwidth_factor=factor)

    def _points(self, series: Array) -> Array:
        n = series.shape[0] - self.lags + 1
        return jnp.concatenate([series[i : i + n] for i in range(self.lags)], axis=-1)

    def _kernel(self, a: Array, b: Array) -> Array:
        return jnp.exp(-_squared_distances(a, b) / (2 * self.bandwidth.astype(a.dtype) ** 2))

    def __call__(self, simulations, data, params):
        def points(simulation):
            # `data` is what the loss was built from; the shapes must still agree.
            x, _, _ = matched(simulation, data, "MaximumMeanDiscrepancy")
            return self._points(x[:, None] if x.ndim == 1 else x)

        x = jax.vmap(points)(simulations)
        x = x.reshape(-1, x.shape[-1])
        y = self._points(self.data.astype(x.dtype))
        within = _off_diagonal_mean(self._kernel(x, x))
        return within + self.within_data.astype(x.dtype) - 2 * jnp.mean(self._kernel(x, y))


class EnergyScore(AbstractLoss):
    """Energy score of an ensemble (Gneiting and Raftery 2007, JASA 102: 359-378, equation 21; unbiased form).

    `mean_r |x_r - y| - 1/2 mean_{r != s} |x_r - x_s|`, with the Euclidean norm over what was observed, divided by
    `scale`. Strictly proper: minimised in expectation by the true distribution of simulations, so it also asks for the
    right amount of noise.
    """

    scale: float = 1.0

    per_simulation = False
    min_replicates = 2

    def __call__(self, simulations, data, params):
        def to_vector(x):
            x, y, seen = matched(x, data, "EnergyScore")
            return jnp.where(seen, x / self.scale, 0).ravel(), jnp.where(seen, y / self.scale, 0).ravel()

        x, y = jax.vmap(to_vector)(simulations)
        n = x.shape[0]
        pairs = _safe_norm(x[:, None] - x[None])
        return jnp.mean(_safe_norm(x - y)) - jnp.sum(pairs) / (2 * n * (n - 1))


class KernelScore(AbstractLoss):
    """Maximum mean discrepancy over replicates: each simulation is one point, and the data are one point.

    `mean_{r != s} k(x_r, x_s) - 2 mean_r k(x_r, y) + 1` with a Gaussian kernel; up to a constant the unbiased squared
    discrepancy between the ensemble and the observation (Dawid 2007; Gneiting and Raftery 2007, section 5.1).

    **Arguments:** `bandwidth`, in the units of the data's norm. There is one observation, so no median to take.
    """

    bandwidth: float

    per_simulation = False
    min_replicates = 2

    def __call__(self, simulations, data, params):
        def to_vector(x):
            x, y, seen = matched(x, data, "KernelScore")
            return jnp.where(seen, x, 0).ravel(), jnp.where(seen, y, 0).ravel()

        x, y = jax.vmap(to_vector)(simulations)
        scale = 2 * self.bandwidth**2
        within = _off_diagonal_mean(jnp.exp(-_squared_distances(x, x) / scale))
        return within - 2 * jnp.mean(jnp.exp(-jnp.sum((x - y) ** 2, axis=-1) / scale)) + 1


def _safe_norm(x: Array) -> Array:
    """Euclidean norm over the last axis, with derivative 0 at 0."""
    square = jnp.sum(x**2, axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
