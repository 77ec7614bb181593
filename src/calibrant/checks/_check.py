"""`check`: all checks of a posterior in one call."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calibrant._calibration import Calibration
from calibrant._files import atomic_path, write_text
from calibrant._problem import Problem
from calibrant._progress import AbstractProgress, NoProgress, TerminalProgress
from calibrant.checks._calibration import CalibrationCheck
from calibrant.checks._figures import (
    coverage_figure,
    identifiability_figure,
    predictive_check_figure,
    ranks_figure,
    sensitivity_figure,
)
from calibrant.checks._identifiability import Identifiability, identifiability
from calibrant.checks._importance import ImportanceCheck, importance
from calibrant.checks._predictive import PredictiveCheck, Summary, predictive_check
from calibrant.checks._refits import Refits, Refitter
from calibrant.checks._sensitivity import Sensitivity, sensitivity
from calibrant.checks._synthetic import Make
from calibrant.checks._where import AbstractWhere, NearData
from calibrant.inference import GVI
from calibrant.posteriors import Posterior

SCHEMA = 1
#: Pictures of a check, `check-NAME.png`, in the order of reading; the last only where the weight was searched.
PICTURES = ("ranks", "coverage", "predictive", "identifiability", "sensitivity", "weight")


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of `check`. `importance` is `None` where the loss is no likelihood."""

    where: str
    likelihood: bool
    weight: float
    refits: Refits
    calibration: CalibrationCheck
    predictive: PredictiveCheck
    importance: ImportanceCheck | None
    identifiability: Identifiability
    sensitivity: Sensitivity
    seed: int
    timings: dict[str, float]

    def verdicts(self) -> list[tuple[str, str]]:
        """Parameter and sentence."""
        return [(v.name, v.sentence) for v in self.calibration.verdicts]

    def verdict(self) -> str:
        """One sentence about all of it."""
        c = self.calibration
        what = (
            "the posterior" if self.likelihood else f"the generalised posterior at this weight (w = {self.weight:.4g})"
        )
        wrong = [f"{v.name} {v.word}" for v in c.verdicts if v.word not in ("calibrated", "prior-dominated")]
        least = c.detectable
        if wrong:
            return f"Coverage of {what}, {self._tested()}: {', '.join(wrong)}."
        if c.tarp.p <= c.size:
            return (
                f"Coverage of {what}, {self._tested()}: every parameter alone is calibrated, but not all together "
                f"(TARP, p = {c.tarp.p:.2g})."
            )
        return (
            f"Coverage of {what}, {self._tested()}: calibrated, as far as they can tell: a width below "
            f"{least.narrow:.2f} or above {least.wide:.2f} times the right one would have shown nine times in ten."
        )

    def _tested(self) -> str:
        return f"{self.calibration.data_sets} data sets"

    def sentences(self) -> list[str]:
        """What was found, in words, the most important first."""
        c, r = self.calibration, self.refits
        out = [self.verdict(), f"What was checked: {self.where}; {r.updates} updates each."]
        if not self.likelihood:
            out.append(
                "The loss is no likelihood: these words are about the generalised posterior at this weight. One weight "
                "fixes the average coverage only, so look at every parameter; --choose-weight searches it."
            )
        if r.convergence is not None:
            out.append(r.convergence.sentence())
        if r.refused or r.failed or r.failed_simulations:
            out.append(
                f"Left out: {r.refused} data sets that could not be fitted, {r.failed} refits that were not finite; "
                f"{r.failed_simulations} simulations of the refits were masked."
            )
        out.append(f"All parameters together (TARP): p = {c.tarp.p:.2g}.")
        out.append(self.predictive.sentence())
        if self.importance is not None:
            out.append(self.importance.sentence())
        out += [self.identifiability.sentence(), self.sensitivity.sentence()]
        return out

    def describe(self) -> dict[str, Any]:
        """For `check.json`."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict(),
            "sentences": self.sentences(),
            "where": self.where,
            "likelihood": self.likelihood,
            "weight": self.weight,
            "seed": self.seed,
            "verdicts": dict(self.verdicts()),
            "refits": self.refits.describe(),
            "calibration": self.calibration.describe(),
            "predictive": self.predictive.describe(),
            "importance": None if self.importance is None else self.importance.describe(),
            "identifiability": self.identifiability.describe(),
            "sensitivity": self.sensitivity.describe(),
            "timings": {k: round(v, 2) for k, v in self.timings.items()},
        }

    def figures(self) -> dict[str, Figure]:
        """Name -> figure."""
        return {
            "ranks": ranks_figure(self.calibration),
            "coverage": coverage_figure(self.calibration),
            "predictive": predictive_check_figure(self.predictive),
            "identifiability": identifiability_figure(self.identifiability),
            "sensitivity": sensitivity_figure(self.sensitivity),
        }

    def save(self, directory: Path) -> Path:
        """Write `check.json` and `check-NAME.png`, each whole or not at all; `check.json` last."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in self.figures().items():
            with atomic_path(directory / f"check-{name}.png") as part:
                figure.savefig(part, format="png", dpi=140)
        write_text(directory / "check.json", json.dumps(self.describe(), indent=1) + "\n")
        return directory / "check.json"


def check(
    problem: Problem,
    run: "Calibration | Posterior",
    method: GVI,
    *,
    where: AbstractWhere | None = None,
    data_sets: int | None = None,
    draws: int = 999,
    at_once: int = 4,
    fast: bool = False,
    summaries: Mapping[str, Summary] | None = None,
    make: Make | None = None,
    size: float = 0.01,
    seed: int = 0,
    progress: "bool | AbstractProgress" = True,
) -> Check:
    """Check a posterior: refits to synthetic data, predictive checks, importance weights, identifiability and
    sensitivities.

    **Arguments:**

    - `problem`, `run`, `method`: what was calibrated, the calibration or its posterior, and how.
    - `where`: `NearData()` by default, or `PriorDraws()`: see there.
    - `data_sets`: refits, 50 by default, 25 if `fast`; the error that can be seen falls as one over their root.
    - `draws` of each refit; `at_once`, refits side by side.
    - `fast`: half the data sets, and half the simulations of the other checks.
    - `summaries`: of data, for predictive checks, in place of the usual ones.
    - `make`: as in `refit`.
    - `size` of the tests.
    - `seed`: equal seeds, equal bits.
    - `progress`: a bar on standard error, or an object of one's own.

    **Raises:** `ValueError` as its parts do (`refit`, `predictive_check`, `importance`, `sensitivity`).
    """
    posterior = run.posterior if isinstance(run, Calibration) else run
    where = NearData() if where is None else where
    count = (25 if fast else 50) if data_sets is None else data_sets
    fewer = 2 if fast else 1
    started = time.perf_counter()
    timings: dict[str, float] = {}

    def timed(name: str) -> None:
        timings[name] = time.perf_counter() - started - sum(timings.values())

    refitter = Refitter(
        problem,
        posterior,
        method,
        where=where,
        data_sets=count,
        draws=draws,
        at_once=at_once,
        seed=seed,
        make=make,
    )
    timed("data")
    if isinstance(progress, bool):
        progress = TerminalProgress(count - refitter.refused, "Refitting", "data sets") if progress else NoProgress()
    weight = float(method.weight)
    with progress:
        progress.note("Predictive checks, importance weights, identifiability and sensitivities ...")
        predicted = predictive_check(
            problem, posterior, summaries=summaries, draws=400 // fewer, replicates=method.replicates, seed=seed
        )
        timed("predictive")
        weighed = None
        if problem.loss.is_likelihood and weight > 0:
            weighed = importance(
                problem, posterior, weight=weight, draws=1000 // fewer, replicates=max(2, method.replicates), seed=seed
            )
        timed("importance")
        known = identifiability(problem, posterior, seed=seed)
        timed("identifiability")
        moved = sensitivity(problem, posterior, runs=1000 // fewer, seed=seed)
        timed("sensitivity")
        refits = refitter.refit(progress=progress)
        timed("refits")
    timings["total"] = time.perf_counter() - started
    return Check(
        where=where.sentence(),
        likelihood=problem.loss.is_likelihood,
        weight=weight,
        refits=refits,
        calibration=refits.calibration(size=size, seed=seed),
        predictive=predicted,
        importance=weighed,
        identifiability=known,
        sensitivity=moved,
        seed=seed,
        timings=timings,
    )
