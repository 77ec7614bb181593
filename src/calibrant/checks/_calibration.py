"""`calibration`: everything that ranks say, and the verdict in words."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from calibrant.checks._ranks import Tarp, central_coverage, folded, ranks, tarp
from calibrant.checks._uniform import Uniformity, uniformity
from calibrant.checks._width import Detectable, Width, detectable, width

#: Plain and folded ranks, three tests of each.
_TESTS = 6
#: Less of the prior's variance taken away than this: the data hardly speak.
PRIOR_DOMINATED = 0.1
LEVELS = (0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What ranks say of one parameter.

    `word`: `calibrated`, `too narrow`, `too wide`, `shifted`, `too narrow and shifted`, `too wide and shifted`,
    `misshapen` (ranks are not uniform in some other way) or `prior-dominated`; `sentence` says by how much.
    """

    name: str
    word: str
    sentence: str
    plain: Uniformity
    folded: Uniformity
    width: Width
    #: Level -> fraction of truths inside the central interval, with a 95% interval (Clopper and Pearson).
    coverage: dict[float, tuple[float, float, float]]
    #: 1 - var(posterior) / var(prior) in the unconstrained coordinate, averaged over data sets; NaN if not known.
    contraction: float
    p: float

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        out = dataclasses.asdict(self)
        out["coverage"] = {f"{level:g}": list(x) for level, x in self.coverage.items()}
        out["contraction"] = self.contraction if np.isfinite(self.contraction) else None
        return out


@dataclasses.dataclass(frozen=True)
class CalibrationCheck:
    """Simulation-based calibration and expected coverage of `data_sets` posteriors.

    `ranks`, scaled to [0, 1], shape (data sets, parameters); `p`, of all tests of ranks together; `detectable`, the
    least that could have been seen.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    tarp: Tarp
    verdicts: tuple[Verdict, ...]
    detectable: Detectable
    size: float

    @property
    def data_sets(self) -> int:
        return len(self.ranks)

    @property
    def p(self) -> float:
        """p-value of simulation-based calibration: plain and folded ranks of all parameters (Bonferroni)."""
        return min(1.0, len(self.verdicts) * min(v.p for v in self.verdicts))

    @property
    def passed(self) -> bool:
        """Whether neither ranks nor joint coverage reject, each at `size`."""
        return self.p > self.size and self.tarp.p > self.size

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "data_sets": self.data_sets,
            "size": self.size,
            "passed": self.passed,
            "p": self.p,
            "parameters": {v.name: v.describe() for v in self.verdicts},
            "tarp": {
                "p": self.tarp.p,
                "references": {name: dataclasses.asdict(t) | {"p": t.p} for name, t in self.tarp.tests.items()},
            },
            "detectable": self.detectable.describe(),
            "ranks": {v.name: [round(float(x), 5) for x in self.ranks[:, i]] for i, v in enumerate(self.verdicts)},
        }


def calibration(
    draws: np.ndarray,
    truths: np.ndarray,
    references: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    prior_variance: np.ndarray | None = None,
    size: float = 0.01,
    seed: int = 0,
) -> CalibrationCheck:
    """Check posteriors against the truths that their data were simulated at, wherever they come from.

    **Arguments:**

    - `draws`, shape (data sets, draws, parameters); `truths` and `references`, (data sets, parameters): as in `ranks`
      and `tarp`. Truths must be draws of the prior that the posteriors were made with.
    - `names`, of the parameters; `prior_variance`, shape (parameters,), for the contraction.
    - `size`, of the tests of ranks together, and of those of joint coverage together.

    **Raises:** `ValueError` as `ranks` and `tarp` do, and for fewer than 10 data sets.
    """
    u = ranks(draws, truths, seed=seed)
    n, dim = u.shape
    if n < 10:
        raise ValueError(f"A check of calibration needs 10 data sets or more, got {n}.")
    names = tuple(f"theta[{i}]" for i in range(dim)) if names is None else tuple(names)
    if len(names) != dim:
        raise ValueError(f"There are {dim} parameters but {len(names)} names.")
    joint = tarp(draws, truths, references, seed=seed + 1)
    least = detectable(n, size=size, tests=_TESTS * dim)
    contraction = np.full(dim, np.nan)
    if prior_variance is not None:
        contraction = 1 - np.mean(np.var(draws, axis=1, ddof=1), axis=0) / np.asarray(prior_variance)
    verdicts = tuple(
        _verdict(name, u[:, i], draws.shape[1], float(contraction[i]), least, size / dim)
        for i, name in enumerate(names)
    )
    return CalibrationCheck(names, u, joint, verdicts, least, size)


def _verdict(name: str, u: np.ndarray, draws: int, contraction: float, least: Detectable, size: float) -> Verdict:
    plain, fold = uniformity(u), uniformity(folded(u))
    estimate = width(u, draws)
    each = size / _TESTS
    p = min(1.0, 2 * min(plain.p, fold.p))
    words = []
    # A shift moves scores away from 0, and so does a wrong width; that one must also show around their mean.
    if min(plain.spread, fold.location) <= each and estimate.p <= each:
        words.append("too narrow" if estimate.factor < 1 else "too wide")
    if plain.location <= each:
        words.append("shifted")
    word = " and ".join(words)
    if not word:
        word = "misshapen" if p <= size else "calibrated"
    if word == "calibrated" and contraction < PRIOR_DOMINATED:
        word = "prior-dominated"
    return Verdict(
        name=name,
        word=word,
        sentence=_sentence(name, word, estimate, contraction, least, len(u)),
        plain=plain,
        folded=fold,
        width=estimate,
        coverage={level: _coverage(u, level) for level in LEVELS},
        contraction=contraction,
        p=p,
    )


def _coverage(u: np.ndarray, level: float) -> tuple[float, float, float]:
    inside, n = central_coverage(u, level)
    interval = stats.binomtest(inside, n).proportion_ci(0.95)
    return inside / n, float(interval.low), float(interval.high)


def _sentence(name: str, word: str, estimate: Width, contraction: float, least: Detectable, n: int) -> str:
    low, high = estimate.factor_interval
    factor = f"width {estimate.factor:.2f} of the right one (95% interval {low:.2f} to {high:.2f})"
    if estimate.saturated:
        factor = f"width {estimate.factor:.2f} of the right one or less: many truths lie outside all draws"
    low, high = estimate.shift_interval
    shift = f"centre {abs(estimate.shift):.2f} of its standard deviations too {'high' if estimate.shift > 0 else 'low'}"
    shift += f" ({low:+.2f} to {high:+.2f})"
    seen = (
        f"{n} data sets would have shown, nine times in ten, a width below {least.narrow:.2f} or above "
        f"{least.wide:.2f} and a shift beyond {least.shift:.2f}"
    )
    if word == "calibrated":
        return f"{name}: calibrated; {factor}, {shift}; {seen}."
    if word == "prior-dominated":
        return (
            f"{name}: prior-dominated: the data take away {max(contraction, 0):.0%} of the prior's variance, so its "
            f"calibration says little; {factor}, {shift}."
        )
    if word == "misshapen":
        return f"{name}: misshapen: ranks are not uniform, by no plain shift or factor of width; {factor}, {shift}."
    return f"{name}: {word}; {factor}, {shift}."
