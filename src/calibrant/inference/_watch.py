"""What goes wrong in gradient-based calibrations, watched for while one runs.

The failure signatures that Quera-Bofarull et al. 2023 (arXiv 2307.01085) name: gradients of too much variance, a flow
that converges slowly, memory that runs out, simulations that diverge. Each is told once, with what to try.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrant.inference._memory import available_memory, memory_in_use

#: Of pure noise the signal-to-noise ratio of an update is about 1.
_NOISE = 1.2
#: A gradient this many times the median of its neighbours is an outlier that clipping alone keeps in check.
_EXPLODES = 100.0
_DIVERGES = 1e4
_NEAR_LIMIT = 0.9
#: Updates that are looked at, at least: those since the last evaluation may be few.
WATCHED = 20


@dataclasses.dataclass(frozen=True)
class Signature:
    """A sign of failure: its name, the update by which it was seen, and what to try."""

    name: str
    update: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}, by update {self.update}: {self.text}"


class Watch:
    """Told of every evaluation, it says what is new."""

    def __init__(self, max_updates: int):
        self._max_updates = max_updates
        self.seen: list[Signature] = []

    def __call__(self, history: Sequence[Mapping[str, Any]], recent: Mapping[str, np.ndarray]) -> list[Signature]:
        """Signatures not told before.

        **Arguments:** `history`, the evaluations so far; `recent`, records of the updates since the one before, or of
        the last `WATCHED` where these are more:
        `gradient_norm`, `signal_to_noise`, `loss`, and `failed`, the share of simulations that were not finite, all
        of shape (updates,).
        """
        update = int(history[-1]["update"])
        told = {s.name for s in self.seen}
        found = [
            Signature(name, update, text)
            for name, text in (
                *_noise(history, recent),
                *_explosion(recent),
                *_divergence(recent),
                *_slowness(history, self._max_updates),
                *_memory(),
            )
            if name not in told
        ]
        self.seen += found
        return found


def _noise(history: Any, recent: Any) -> list[tuple[str, str]]:
    ratios = recent["signal_to_noise"]
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 10 or np.median(ratios) > _NOISE or _gained(history, 0) > 2:
        return []
    text = (
        f"signal to noise of the gradient is {np.median(ratios):.2g}, as of noise alone, and the objective is not "
        "below where it started; take a shorter horizon, more simulations or replicates, or another estimator "
        "(`calibrant gradients` says which)"
    )
    return [("gradients are noise", text)]


def _explosion(recent: Any) -> list[tuple[str, str]]:
    norms = recent["gradient_norm"]
    norms = norms[np.isfinite(norms)]
    if len(norms) < 10 or not np.max(norms) > _EXPLODES * max(np.median(norms), 1.0):  # 1: where it is clipped
        return []
    text = (
        f"a gradient had a norm of {np.max(norms):.0e}, the median one of {np.median(norms):.2g}; take a shorter "
        "horizon (SlidingHorizon, GeometricHorizon), or differences"
    )
    return [("gradients explode", text)]


def _divergence(recent: Any) -> list[tuple[str, str]]:
    out = []
    share, losses = np.mean(recent["failed"]), recent["loss"][np.isfinite(recent["loss"])]
    if share > 0:
        text = (
            f"{share:.2g} of the last simulations were not finite; the report says where in parameter space: narrow "
            "the priors there, or choose what they count as by `failures` of the method"
        )
        out.append(("simulations fail", text))
    middle = np.median(np.abs(losses)) if len(losses) else 0
    if len(losses) >= 10 and middle > 0 and np.max(np.abs(losses)) > _DIVERGES * middle:
        text = (
            f"the loss of an update was {np.max(np.abs(losses)) / middle:.0e} times the median; narrow the priors, or "
            "take a loss that bears outliers (logarithms, ranks)"
        )
        out.append(("simulations diverge", text))
    return out


def _slowness(history: Any, max_updates: int) -> list[tuple[str, str]]:
    last = history[-1]["update"]
    if len(history) < 5 or not np.isfinite(history[-1]["objective"]):
        return []
    if last >= max_updates:
        quarter = next(i for i, row in enumerate(history) if row["update"] >= 0.75 * last)
        whole = history[0]["objective"] - history[-1]["objective"]
        gain = history[quarter]["objective"] - history[-1]["objective"]
        if whole > 0 and _gained(history, quarter) > 3 and gain > 0.1 * whole:
            text = f"the last quarter of the updates brought {gain / whole:.0%} of the gain; allow more `max_updates`"
            return [("still falling at the end", text)]
    elif last >= 0.25 * max_updates and abs(history[-1]["kl"] - history[0]["kl"]) < 0.01 and _gained(history, 0) < 2:
        text = (
            "after a quarter of the updates the posterior is where it started; take a larger `learning_rate`, a "
            "smaller `weight`, or ask `calibrant gradients`"
        )
        return [("the flow has hardly moved", text)]
    return []


def _memory() -> list[tuple[str, str]]:
    taken = memory_in_use()
    if taken is None:
        return []
    left = available_memory()
    if taken < _NEAR_LIMIT * (taken + left):
        return []
    text = (
        f"{taken / 2**30:.1f} GiB are taken and {left / 2**30:.1f} left; set `simulations_at_once`, or let "
        "AutoMode plan"
    )
    return [("memory is near its limit", text)]


def _gained(history: Any, since: int) -> float:
    """By how many standard errors the objective is lower than at evaluation `since`.

    Both were evaluated on the same draws, so this is a cautious number.
    """
    then, now = history[since], history[-1]
    error = np.hypot(then["standard_error"], now["standard_error"])
    gain = then["objective"] - now["objective"]
    return float(gain / error) if np.isfinite(gain) and error > 0 else float("inf") if gain > 0 else 0.0
