"""The check at the start of every calibration: its gradient beside central differences, parameter by parameter."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant.diagnostics._advice import listed
from calibrant.diagnostics._gradients import Measurement, gradients
from calibrant.estimators import AbstractEstimator, FiniteDifferences
from calibrant.inference import GVI, AbstractMethod, Point
from calibrant.inference._mcmc import AbstractMCMC
from calibrant.posteriors import FullRankGaussian, Posterior

_REPEATS = 4
#: Draws to check a gradient at, of methods that take one at a point.
_VALUES = 5
#: Differences in more numbers than these cost too much for a check that nobody asked for.
MOST_CHECKED = 64


@dataclasses.dataclass(frozen=True)
class StartCheck:
    """Ratios of the gradient to central differences with common random numbers, and their standard errors."""

    names: tuple[str, ...]
    ratio: np.ndarray
    error: np.ndarray
    #: Whether differences are distinguishable from zero.
    identified: np.ndarray

    def rows(self) -> list[tuple[str, str]]:
        """A table: parameter, ratio."""
        return check_rows(self.describe())

    def warning(self) -> str:
        """A sentence about the worst, empty if nothing is wrong."""
        every = list(zip(self.names, self.ratio, self.error, self.identified, strict=True))
        wrong = [n for n, r, e, seen in every if seen and r < -3 * e]
        if wrong:
            return f"The gradient of {listed(wrong)} has the wrong sign; `calibrant gradients` says what to change."
        off = [n for n, r, e, seen in every if seen and (r - 3 * e > 2 or r + 3 * e < 0.5)]
        if off:
            return f"The gradient of {listed(off)} is off by more than two; `calibrant gradients` says more."
        noise = [n for n, r, e, seen in every if seen and _all_noise(r, e)]
        if noise:
            return (
                f"The gradient of {listed(noise)} is all noise here: clipping and many updates have to find the way; "
                "`calibrant gradients` says more."
            )
        return ""

    def describe(self) -> dict[str, Any]:
        """For the manifest of a run."""
        return {
            name: {"ratio": float(r), "error": float(e)} if seen else None
            for name, r, e, seen in zip(self.names, self.ratio, self.error, self.identified, strict=True)
        }


def check_rows(check: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of a check, from what `StartCheck.describe` made of it."""

    def shown(x: Mapping[str, float] | None) -> str:
        if x is None:
            return "differences are all noise"
        noisy = _all_noise(x["ratio"], x["error"])
        return f"all noise (± {x['error']:.1g})" if noisy else f"{x['ratio']:.2g} ± {x['error']:.1g}"

    return [(name, shown(x)) for name, x in check.items()]


def _all_noise(ratio: float, error: float) -> bool:
    """Neither its sign nor its size can be told: a few draws may outweigh all others."""
    return bool(error > 1 and abs(ratio) < 3 * error)


def _like(method: AbstractMethod) -> GVI | None:
    """Variational inference that takes its gradient as the method does; `None` if it takes none."""
    if isinstance(method, GVI):
        return method
    if not isinstance(method, Point | AbstractMCMC):
        return None
    return GVI(
        simulations=_VALUES,
        replicates=method.replicates,
        estimator=method.estimator,
        mode=method.mode,
        horizon=method.horizon,
        simulations_at_once=method.simulations_at_once,
        family=FullRankGaussian(),
    )


def start_check(
    problem: Problem, prior: Prior, method: AbstractMethod, *, posterior: Posterior | None = None, seed: int = 0
) -> StartCheck | None:
    """A small version of `gradients`, at the draws of one update.

    **Returns:** `None` where there is nothing to compare: the method takes differences itself, or no gradient, or there
    are more than 64 numbers to differentiate in.
    """
    like = _like(method)
    if like is None or not problem.model.differentiable:
        return None
    takes_gradients = isinstance(like.estimator, AbstractEstimator)
    if not takes_gradients or isinstance(like.estimator, FiniteDifferences) or prior.dim > MOST_CHECKED:
        return None
    points = max(2, min(like.simulations, 8))
    if like.simulations_at_once is None:  # no more at once than an update has
        like = dataclasses.replace(like, simulations_at_once=like.simulations * like.replicates)
    health = gradients(problem, prior, like, posterior=posterior, points=points, repeats=_REPEATS, others=[], seed=seed)
    mine: Measurement = health.configured
    ratio, error = health.ratios(mine)
    return StartCheck(health.names, ratio, error, health.identified)
