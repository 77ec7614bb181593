"""The weight of the KL divergence at which intervals cover what they say.

A generalised posterior, proportional to `prior * exp(-loss / w)`, has no width of its own: `w` sets it. Choosing `w` so
that intervals of refits cover the truth at the nominal rate is the general posterior calibration of Syring and Martin
(2019, Biometrika 106: 479-486), here by bisection on `log w`: every step refits the same data sets from the same seeds,
so coverage hardly jumps, and moves to a larger weight where intervals cover too little.

Coverage is the average over parameters: one number can fix one number, and what is left is shown by parameter. As `w`
grows without bound every posterior becomes the prior, whose coverage is right as well; the search looks for the
crossing from too little to too much, which is the smallest such weight.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from calibrant._progress import AbstractProgress, NoProgress
from calibrant.checks._calibration import CalibrationCheck
from calibrant.checks._refits import Refitter


@dataclasses.dataclass(frozen=True)
class WeightStep:
    """Coverage at a weight: the fraction of truths in central intervals of the nominal probability, all parameters
    together; its standard error (of the data sets' averages); and by parameter."""

    weight: float
    coverage: float
    error: float
    by_parameter: np.ndarray
    check: CalibrationCheck

    def row(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """For a table: weight, coverage, coverage and width factor of every parameter."""
        widths = [
            f"{c:.0%}, width {v.width.factor:.2f}" for c, v in zip(self.by_parameter, self.check.verdicts, strict=True)
        ]
        assert len(names) == len(widths)
        return f"{self.weight:.4g}", f"{self.coverage:.1%} ± {self.error:.1%}", *widths


@dataclasses.dataclass(frozen=True)
class WeightSearch:
    """What was tried, in order, and what came of it. `bracket`: the largest weight that covered too little and the
    smallest that covered enough, where both were found; `weight`, the choice."""

    names: tuple[str, ...]
    nominal: float
    steps: tuple[WeightStep, ...]
    bracket: tuple[float, float] | None
    weight: float

    @property
    def found(self) -> WeightStep:
        """The step at `weight`."""
        return next(s for s in self.steps if s.weight == self.weight)

    @property
    def idle(self) -> bool:
        """Whether widths changed by less than 5% over weights a factor of ten or more apart."""
        weights = [s.weight for s in self.steps]
        widths = np.array([[v.width.factor for v in s.check.verdicts] for s in self.steps])
        return max(weights) >= 10 * min(weights) and bool(np.all(np.ptp(widths, axis=0) < 0.05 * widths.max(axis=0)))

    def sentence(self) -> str:
        """In words."""
        step = self.found
        said = (
            f"At weight {self.weight:.4g} intervals of {self.nominal:.0%} hold {step.coverage:.1%} (standard error "
            f"{step.error:.1%}) of the truths, over all parameters"
        )
        each = ", ".join(f"{n} {c:.0%}" for n, c in zip(self.names, step.by_parameter, strict=True))
        if self.bracket is None:
            way = "too few" if step.coverage < self.nominal else "too many"
            if self.idle:
                why = "widths hardly change with it, so the refits are too short to feel it: give them more updates"
            else:
                why = "search further out"
            return f"{said}: {way} at every weight that was tried; {why}. By parameter: {each}."
        return f"{said} (between {self.bracket[0]:.4g} and {self.bracket[1]:.4g}). By parameter: {each}."

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nominal": self.nominal,
            "weight": self.weight,
            "bracket": None if self.bracket is None else list(self.bracket),
            "steps": [
                {
                    "weight": s.weight,
                    "coverage": s.coverage,
                    "error": s.error,
                    "parameters": {
                        n: {"coverage": float(c), "width": v.width.describe()}
                        for n, c, v in zip(self.names, s.by_parameter, s.check.verdicts, strict=True)
                    },
                }
                for s in self.steps
            ],
        }


#: Heads of the first columns of a table of steps.
STEP_COLUMNS = ("weight", "coverage")


def choose_weight(
    refitter: Refitter,
    *,
    nominal: float = 0.9,
    factor: float = 4.0,
    steps: int = 8,
    tolerance: float = 0.15,
    progress: AbstractProgress | None = None,
) -> WeightSearch:
    """Search for the weight at which refits cover.

    **Arguments:** `refitter`, with the data sets and the method, whose weight is where the search starts; `nominal`
    probability of the intervals; `factor`, of the first steps outwards; `steps`, at most; `tolerance`, of `log w`, at
    which the bracket is narrow enough. The search also ends where coverage is within half a standard error. `progress`
    is told of every refit and shown every step.

    **Raises:** `ValueError` for arguments that make no search.
    """
    if not 0 < nominal < 1 or not factor > 1 or steps < 1 or not tolerance > 0:
        raise ValueError("A search needs 0 < nominal < 1, factor > 1, steps >= 1 and tolerance > 0.")
    start = float(refitter.method.weight)
    if not start > 0:
        raise ValueError("A search for the weight starts at a weight above 0.")
    progress = NoProgress() if progress is None else progress
    tried: list[WeightStep] = []
    low: float | None = None  # covers too little
    high: float | None = None  # covers enough
    weight = start
    for _ in range(steps):
        refits = refitter.refit(weight, progress=progress, there_and_back=False)
        check = refits.calibration()
        inside = np.abs(2 * check.ranks - 1) <= nominal
        each = inside.mean(axis=1)
        # Laplace's rule: an error of 0 where all are inside would end the search.
        smooth = (inside.sum() + 1) / (inside.size + 2)
        error = max(float(np.std(each, ddof=1)), math.sqrt(smooth * (1 - smooth) / inside.shape[1])) / math.sqrt(
            len(each)
        )
        step = WeightStep(weight, float(inside.mean()), error, inside.mean(axis=0), check)
        tried.append(step)
        progress.note(
            f"weight {weight:.4g}: intervals of {nominal:.0%} hold {step.coverage:.1%} ± {error:.1%} of the truths"
        )
        if step.coverage < nominal:
            low = weight if low is None else max(low, weight)
        else:
            high = weight if high is None else min(high, weight)
        if abs(step.coverage - nominal) <= error / 2 or (
            low is not None and high is not None and math.log(high / low) <= tolerance
        ):
            break
        if low is None or high is None:
            weight = weight * factor if high is None else weight / factor
        else:
            weight = math.sqrt(low * high)
    best = min(tried, key=lambda s: abs(s.coverage - nominal))
    bracket = None if low is None or high is None else (low, high)
    if abs(best.coverage - nominal) <= best.error / 2 and bracket is None:
        bracket = (best.weight, best.weight)
    return WeightSearch(refitter.problem_names, nominal, tuple(tried), bracket, best.weight)
