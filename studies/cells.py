"""What studies of gradients share: a cell is measured, fitted, and kept."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import Case

import calibrant as cal
from calibrant._files import write_text
from calibrant.diagnostics import GradientHealth, gradients


class Cells:
    """Results by key, written as they come and not computed twice.

    Processes with cells of their own may add to one file; there is no lock, so two that end in the same instant may
    leave one cell to be run again.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path, self._settings = path, settings
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        """Take up what is there, from this process or another."""
        if not self._path.exists():
            return
        kept = json.loads(self._path.read_text())
        if kept["settings"] != self._settings:
            raise SystemExit(f"{self._path} holds results of other settings, {kept['settings']}: give another --out.")
        self.results = kept["cells"] | self.results

    def run(self, todo: list[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
        left = [(key, compute) for key, compute in todo if key not in self.results]
        start = time.perf_counter()
        for done, (key, compute) in enumerate(left):
            self._read()
            if key in self.results:
                continue
            began = time.perf_counter()
            result = compute()
            result["wall_seconds"] = time.perf_counter() - began
            jax.clear_caches()  # programs of one cell are of no use to the next, and add up to gigabytes
            self._read()
            self.results[key] = result
            kept = {"settings": self._settings, "cells": self.results}
            write_text(self._path, json.dumps(kept, indent=1) + "\n")
            rest = (time.perf_counter() - start) * (len(left) - done - 1) / (done + 1)
            print(f"{done + 1} of {len(left)}: {key}, about {rest / 60:.0f} min left", flush=True)


def measured(case: Case, method: cal.GVI, *, points: int, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Bias (cosine with central differences, ratio of lengths along them), noise and cost of a method's gradient."""
    health = gradients(case.problem, case.prior, method, points=points, repeats=repeats, others=[], seed=seed)
    mine, reference = health.configured.raw, health.reference.raw
    product, size = np.sum(mine.mean * reference.mean), reference.square
    bias = np.sum((mine.mean - reference.mean) ** 2 - mine.error**2 - reference.error**2)
    both = size * mine.square if reference.seen and mine.seen else math.nan
    return {
        "cosine": _number(np.clip(product / math.sqrt(both), -1, 1)),
        "ratio": _number(product / max(np.sum(reference.mean**2), 1e-30)),
        "bias2": _number(max(bias, 0.0) / size if size > 0 else math.nan),
        "noise2": _number(np.sum(mine.sd**2) / size if size > 0 else math.nan),
        "clipped": clipped(health),
        "forward_runs": health.configured.forward_runs,
        "failed": health.configured.failed,
    }


def clipped(health: GradientHealth) -> dict[str, Any]:
    """The same as the optimiser sees it, and the median length."""
    mine = health.configured
    return {
        "cosine": _number(health.alignment(mine)),
        "noise2": _number(mine.noise),
        "length": _number(mine.length),
    }


def fitted(case: Case, method: cal.GVI, *, seed: int = 0) -> dict[str, Any]:
    """The quality of a calibration: objective at fresh draws, and truths inside their 90% intervals."""
    start = time.perf_counter()
    result = cal.calibrate(case.problem, case.prior, method=method, seed=seed, progress=False, throw=False)
    low, high = (result.quantiles((q,)) for q in (0.05, 0.95))
    inside = sum(float(low[n][0]) <= x <= float(high[n][0]) for n, x in case.truth.items())
    return {
        "objective": _number(result.evaluation["objective"]),
        "error": _number(result.evaluation["standard_error"]),
        "start": _number(result.history[0]["objective"]),
        "kl": _number(result.evaluation["kl"]),
        "inside": inside,
        "truths": len(case.truth),
        "simulations": result.n_simulations,
        "seconds": time.perf_counter() - start,
        "signatures": [s["name"] for s in result.signatures],
    }


def method(simulations: int, replicates: int, budget: int, runs: float = 1, **how: Any) -> cal.GVI:
    """A calibration with so many simulations in all, `runs` of them for each value and replicate."""
    updates = max(4, int(budget / (simulations * replicates * runs) + 1e-9))
    return cal.GVI(
        simulations=simulations,
        replicates=replicates,
        max_updates=updates,
        learning_rate=2e-2,
        final_learning_rate=2e-3,
        kl_samples=max(100, simulations),
        evaluate_every=max(1, updates // 4),
        evaluation_simulations=100,
        family=cal.posteriors.FullRankGaussian(),
        simulations_at_once=64,  # a town's steps, stored for a reverse pass, take 10 MB a simulation
        **how,
    )


def wrong_but_confident(fit: dict[str, Any]) -> bool:
    """Fewer than half of the truths inside their 90% intervals, in a posterior that has moved by a nat or more."""
    return fit["truths"] > 0 and 2 * fit["inside"] < fit["truths"] and (fit["kl"] or 0) > 1


def _number(x: Any) -> float | None:
    return float(x) if math.isfinite(float(x)) else None
