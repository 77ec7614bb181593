"""How wrong? Width and shift of posteriors from ranks, and the least that a number of data sets can show.

If posteriors are normal with a standard deviation `c` times the right one, and a centre that is off by `d` of their
own standard deviations, normal scores `s = Phi^-1(u)` of the ranks are Normal(-d, 1/c^2). So `1 / sd(s)` estimates the
width factor `c`, with the interval of a variance (chi-square), and `-mean(s)` the shift `d`, with Student's. Where
posteriors are not normal these are the factor and the shift that act like it on coverage.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from calibrant.checks._uniform import scores


@dataclasses.dataclass(frozen=True)
class Width:
    """Estimates from one parameter's ranks; intervals are 95%.

    `factor`: the posterior's width over the right one, below 1 too narrow. `shift`: of the posterior's centre from
    where it should be, in its own standard deviations, positive too high. `saturated`, whether a fifth of the truths or
    more lie outside all draws, so that the factor is smaller than it says.
    """

    factor: float
    factor_interval: tuple[float, float]
    shift: float
    shift_interval: tuple[float, float]
    saturated: bool
    p: float

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def width(u: np.ndarray, draws: int, level: float = 0.95) -> Width:
    """Width factor and shift from the ranks of one parameter, shape (data sets,).

    **Arguments:** `draws`, of each posterior; `level`, of the intervals.
    """
    s = scores(u)
    n, sd = len(s), float(np.std(s, ddof=1))
    low, high = stats.chi2.ppf([(1 - level) / 2, (1 + level) / 2], n - 1)
    half = stats.t.ppf((1 + level) / 2, n - 1) * sd / np.sqrt(n)
    centre = -float(np.mean(s))
    square = (n - 1) * sd**2
    outside = np.mean((u < 1 / (draws + 1)) | (u > 1 - 1 / (draws + 1)))
    return Width(
        factor=1 / sd,
        factor_interval=(float(np.sqrt(low / (n - 1)) / sd), float(np.sqrt(high / (n - 1)) / sd)),
        shift=centre,
        shift_interval=(float(centre - half), float(centre + half)),
        saturated=bool(outside >= 0.2),
        p=float(min(1.0, 2 * min(stats.chi2.cdf(square, n - 1), stats.chi2.sf(square, n - 1)))),
    )


@dataclasses.dataclass(frozen=True)
class Detectable:
    """The smallest errors that a check finds with probability `power` when it tests at size `size`.

    `narrow` and `wide`: width factors; `shift`: in standard deviations of the posterior.
    """

    narrow: float
    wide: float
    shift: float
    size: float
    power: float

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def detectable(data_sets: int, *, size: float = 0.01, tests: int = 1, power: float = 0.9) -> Detectable:
    """What the location and spread tests of `uniformity` can see, in closed form for normal posteriors.

    With width factor `c`, `c^2 sum s^2` is chi-square with `n` degrees of freedom: the spread test rejects a factor
    below 1 with probability `power` where `c^2 = q(1 - power) / q(1 - a/2)`, above 1 where
    `c^2 = q(power) / q(a/2)`, `q` the quantiles and `a = size / tests` (Bonferroni).

    **Arguments:** `data_sets`; `size`, of all tests together; `tests`, how many there are.
    """
    a, n = size / tests, data_sets
    q = stats.chi2(n).ppf
    return Detectable(
        narrow=float(np.sqrt(q(1 - power) / q(1 - a / 2))),
        wide=float(np.sqrt(q(power) / q(a / 2))),
        shift=float((stats.norm.ppf(1 - a / 2) + stats.norm.ppf(power)) / np.sqrt(n)),
        size=size,
        power=power,
    )
