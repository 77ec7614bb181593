"""What the measurements of gradients say to do, in one sentence each."""

import dataclasses
from typing import Any

import numpy as np

from calibrant._autodiff import ReverseMode
from calibrant._horizon import FullHorizon
from calibrant.diagnostics._gradients import GradientHealth, Measurement
from calibrant.estimators import FiniteDifferences
from calibrant.inference import GVI, Corrected

#: Below this cosine with the differences a gradient is called astray.
_ALIGNED = 0.8
#: Beyond this factor a gradient is called too large or too small.
_OFF = 2.0
#: Another candidate is advised if it goes so many times as far for the same work.
_WORTH = 1.5


def best(health: GradientHealth) -> Measurement:
    """Of the candidates that point the way of the differences and are about as long, what goes furthest for the work.

    Where it is too short to be clipped, a gradient of the loss that is too long or too short acts like another weight:
    the divergence from the prior, whose gradient is exact, is set against it.
    """
    sound = [m for m in health.measurements if _aligned(health, m) and _about_as_long(health, m)]
    return max(sound, key=health.progress, default=health.reference)


def about_as_long(length: float) -> bool:
    """Whether a gradient of this median length, of the differences', acts like one of the right length."""
    return 1 / _OFF <= length <= _OFF


def _about_as_long(health: GradientHealth, m: Measurement) -> bool:
    return m is health.reference or about_as_long(m.length)


def points_right(cosine: float) -> bool:
    """Whether a gradient with this cosine to the differences is not astray."""
    return cosine >= _ALIGNED


def _aligned(health: GradientHealth, m: Measurement) -> bool:
    return m is health.reference or (points_right(health.alignment(m)) and not _wrong_signs(health, m))


def _wrong_signs(health: GradientHealth, m: Measurement) -> list[str]:
    ratio, error = health.ratios(m)
    return [
        n for n, r, e, seen in zip(health.names, ratio, error, health.identified, strict=True) if seen and r < -3 * e
    ]


def listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def advise(health: GradientHealth) -> list[str]:
    """Sentences: what is wrong with the gradients of the method as configured, and what to do."""
    mine, reference, out = health.configured, health.reference, []
    if not health.target.seen or not np.any(health.identified):
        out.append(
            "Differences are all noise here, so nothing can be said of bias; take more `repeats`, a larger `step`, or "
            "points where the loss depends on the parameters."
        )
        return out
    if mine.failed:
        out.append(
            f"{mine.failed} of {mine.count} gradients were not finite; look at the priors, or shorten the horizon."
        )
    choice = best(health)
    if mine is reference:
        return [*out, *_simulations(health, mine)]
    if health.corrected:
        return [*out, "The configured gradient is measured before its correction, which takes the bias away."]
    wrong = _wrong_signs(health, mine)
    if wrong:
        out.append(f"The gradient of {listed(wrong)} has the wrong sign; change the estimator or the horizon.")
    ratio, error = health.ratios(mine)
    seen = health.identified & (np.abs(ratio) > 3 * error)
    zero = [n for i, n in enumerate(health.names) if health.identified[i] and not np.any(mine.raw.mean[:, i])]
    if zero:
        out.append(
            f"The gradient of {listed(zero)} is zero and the loss does depend on it: the horizon cuts its paths; name "
            "it in `keep`, or lengthen the horizon."
        )
    large = [n for n, r, s in zip(health.names, ratio, seen, strict=True) if s and r > _OFF]
    small = [n for n, r, s in zip(health.names, ratio, seen, strict=True) if s and 0 < r < 1 / _OFF]
    if large:
        out.append(f"The gradient of {listed(large)} is more than twice too large, which acts like a smaller weight.")
    if small:
        out.append(f"The gradient of {listed(small)} is less than half of what it should be, like a larger weight.")
    why = _why(health)
    if why and choice is reference and health.correctable:
        out.append(
            f'Use straight-through corrected by differences (estimator = "corrected"): {why}; differences alone take '
            f"{reference.simulations} simulations a gradient."
        )
    elif why:
        out.append(
            f"Use {choice.candidate.name}: {why}; this one has cosine {health.alignment(choice):.2f} and "
            f"{choice.length:.2g} times the length."
        )
    out += _simulations(health, mine)
    growth = health.growth[-1]
    all_paths = isinstance(choice.candidate.horizon, FullHorizon) and choice is not reference
    if np.isfinite(growth) and growth > 1e4 and not all_paths:  # else clipping is enough
        steps = int(np.argmax(health.growth > 100))
        out.append(
            f"Derivatives grow by a factor of {growth:.0e} over the simulation, as in a chaotic model: a horizon of "
            f"some {max(1, steps)} steps keeps them below 100."
        )
    return out or ["The gradients are good: aligned with the differences, and enough simulations to see them."]


def _why(health: GradientHealth) -> str:
    """Why not to stay with the gradient as configured; empty if there is no reason, or nothing better."""
    mine, choice, alignment = health.configured, best(health), health.alignment(health.configured)
    if choice is mine:
        return ""
    further = health.progress(choice) / max(health.progress(mine), 1e-30)
    if np.isnan(alignment):
        return "the configured gradient is too noisy to have a direction"
    if not _aligned(health, mine):
        return f"the configured gradient points another way than the differences (cosine {alignment:.2f})"
    if not _about_as_long(health, mine):
        return f"the configured gradient is {mine.length:.2g} times as long as the differences"
    if further > _WORTH:
        return f"for the same work it goes {further:.2g} times as far as the configured gradient"
    return ""


def advised(method: GVI, health: GradientHealth) -> GVI:
    """The method with the gradient that `advise` says to use, and nothing else changed: where it says differences,
    straight-through corrected by them, or they themselves where that cannot be. (Of `FlowScore`, which has no gradient
    of a point, what is measured and judged is straight-through.)"""
    choice = best(health)
    visible = health.target.seen and bool(np.any(health.identified))
    if health.corrected or health.configured is health.reference or not visible or not _why(health):
        return method
    if choice is health.reference and health.correctable:
        return dataclasses.replace(method, estimator=Corrected())
    if choice is health.reference:
        plain: Any = {"horizon": FullHorizon(), "mode": ReverseMode()}
        return dataclasses.replace(method, estimator=FiniteDifferences(), **plain)
    it = choice.candidate
    return dataclasses.replace(method, estimator=it.estimator, horizon=it.horizon, replicates=it.replicates)


def _simulations(health: GradientHealth, mine: Measurement) -> list[str]:
    needed = mine.noise
    if not np.isfinite(needed):
        return ["The configured gradient is all noise at these points."]
    if needed > 4 * health.simulations:
        share = np.sqrt(health.simulations / needed)
        return [
            f"At {health.simulations} simulations an update the signal is {share:.2g} of the noise; "
            f"{int(np.ceil(needed))} would make them equal; or lower the learning rate."
        ]
    return []
