"""Is a sample uniform? Three tests of probability integral transforms, and the envelope of their distribution function.

The envelope is that of Säilynoja, Bürkner and Vehtari (2022), Statistics and Computing 32: 32 (arXiv 2103.10522): bands
of the empirical distribution function at `K` points, pointwise binomial intervals whose level is adjusted so that all
hold at once with the wanted probability. Given how many of `n` values lie below one point, how many more lie below the
next is binomial, so the probability that all bands hold is a product of small matrices, exact for every `n` (their
algorithm 2, for one sample). The same recursion turns the worst point into an exact p-value.

The other two tests look at normal scores `s = Phi^-1(u)`: `sqrt(n) mean(s)` is standard normal if `u` is uniform
(location), and `sum s^2` is chi-square with `n` degrees of freedom (spread). They are the sharpest there are against
posteriors that are shifted, or too narrow or too wide, where these are normal; the envelope is for everything else.
"""

import dataclasses
import functools

import numpy as np
from scipy import stats

_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Envelope:
    """Bands of the empirical distribution function of `n` uniform values.

    `points`, shape (K,); `low` and `high`, the smallest and largest fraction of values at or below each point that is
    inside, shape (K,); `probability`, exact, that all of them are.
    """

    points: np.ndarray
    low: np.ndarray
    high: np.ndarray
    probability: float


def _points(n: int) -> np.ndarray:
    k = min(n, _POINTS)
    return np.arange(1, k + 1) / (k + 1)


def _bands(n: int, points: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts that pointwise two-sided binomial tests of size `level` do not reject: P(X <= k), P(X >= k) > level/2."""
    counts = np.arange(n + 1)
    below = stats.binom.cdf(counts, n, points[:, None])
    above = stats.binom.sf(counts - 1, n, points[:, None])
    inside = (below > level / 2) & (above > level / 2)
    return np.argmax(inside, axis=1), n - np.argmax(inside[:, ::-1], axis=1)


def _probability(n: int, points: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """That the counts of `n` uniform values are within the bands at all points."""
    alive, at, before = np.ones(1), np.zeros(1, int), 0.0
    for point, a, b in zip(points, low, high, strict=True):
        counts = np.arange(a, b + 1)
        more = counts[None] - at[:, None]
        step = stats.binom.pmf(more, (n - at)[:, None], (point - before) / (1 - before))
        alive, at, before = alive @ step, counts, point
    return float(min(1.0, alive.sum()))


@functools.lru_cache(maxsize=64)
def envelope(n: int, level: float = 0.99) -> Envelope:
    """The envelope that `n` uniform values stay inside with probability `level` (the largest below it, counts being
    discrete).

    **Raises:** `ValueError` for fewer than two values, and for a level that is not between 0 and 1.
    """
    if n < 2:
        raise ValueError(f"An envelope needs two values or more, got {n}.")
    if not 0 < level < 1:
        raise ValueError(f"The level of an envelope is between 0 and 1, got {level}.")
    points = _points(n)
    lower, upper = np.log((1 - level) / (10 * len(points))), np.log(1 - level)
    for _ in range(30):  # the probability falls with the size of the pointwise tests
        middle = (lower + upper) / 2
        if _probability(n, points, *_bands(n, points, np.exp(middle))) >= level:
            lower = middle
        else:
            upper = middle
    low, high = _bands(n, points, np.exp(lower))
    return Envelope(points, low / n, high / n, _probability(n, points, low, high))


def envelope_p_value(u: np.ndarray) -> float:
    """The probability that the worst point of `len(u)` uniform values is as far out as that of `u`, or farther."""
    u = np.asarray(u, dtype=float)
    n, points = len(u), _points(len(u))
    counts = np.searchsorted(np.sort(u), points, side="right")
    tails = np.minimum(stats.binom.cdf(counts, n, points), stats.binom.sf(counts - 1, n, points))
    worst = 2 * float(np.min(tails))
    if worst <= 0:
        return 0.0
    # Bands one notch narrower than what was seen: `u` itself is outside, and all that is less far out is inside.
    return max(0.0, 1.0 - _probability(n, points, *_bands(n, points, min(worst, 1.0) * (1 + 1e-9))))


@dataclasses.dataclass(frozen=True)
class Uniformity:
    """p-values of three tests of uniformity; `p`, of the three together (Bonferroni)."""

    location: float
    spread: float
    envelope: float

    @property
    def p(self) -> float:
        return min(1.0, 3 * min(self.location, self.spread, self.envelope))


def scores(u: np.ndarray) -> np.ndarray:
    """Normal scores of values between 0 and 1, whose ends are kept finite."""
    tiny = np.finfo(float).tiny
    return stats.norm.ppf(np.clip(u, tiny, 1 - np.finfo(float).epsneg))


def uniformity(u: np.ndarray) -> Uniformity:
    """Test values between 0 and 1, shape (n,), for being independent and uniform.

    **Raises:** `ValueError` for fewer than two values, or values outside [0, 1].
    """
    u = np.asarray(u, dtype=float)
    if u.ndim != 1 or len(u) < 2 or not np.all((u >= 0) & (u <= 1)):
        raise ValueError(f"`uniformity` takes two values between 0 and 1 or more, in one axis; got shape {u.shape}.")
    s = scores(u)
    location = 2 * stats.norm.sf(abs(np.sqrt(len(s)) * np.mean(s)))
    square = np.sum(s**2)
    spread = 2 * min(stats.chi2.cdf(square, len(s)), stats.chi2.sf(square, len(s)))
    return Uniformity(float(location), float(min(1.0, spread)), envelope_p_value(u))
