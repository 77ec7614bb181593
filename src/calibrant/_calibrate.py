"""`calibrate`: the loop over a method's public `init`, `step`, `evaluate` and `terminate`."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from calibrant._calibration import Calibration
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._progress import AbstractProgress, NoProgress, TerminalProgress, table
from calibrant.diagnostics import start_check
from calibrant.diagnostics._start import MOST_CHECKED
from calibrant.inference import GVI, AbstractMethod, Evaluation, Result
from calibrant.inference._planner import PLAN_COLUMNS
from calibrant.inference._watch import Watch
from calibrant.posteriors import Posterior

_FIXED, _FRESH = 0, 1
_KEPT_FAILURES = 10_000


class CalibrationError(RuntimeError):
    """A calibration that did not end well; `calibration` holds what there is."""

    def __init__(self, calibration: Calibration):
        super().__init__(calibration.reason)
        self.calibration = calibration


def calibrate(
    problem: Problem,
    priors: "Prior | Mapping[str, dist.Distribution] | None" = None,
    *,
    method: AbstractMethod | None = None,
    seed: int = 0,
    start: Posterior | None = None,
    progress: "bool | AbstractProgress" = True,
    check_gradients: bool | None = None,
    throw: bool = True,
) -> Calibration:
    """Fit a posterior.

    **Arguments:**

    - `problem`: model, data and loss.
    - `priors`: of the free parameters, by name; by default all of the model's own.
    - `method`: `GVI()` by default.
    - `seed`: equal seeds give equal bits (same program, versions and kind of device).
    - `start`: begin at this posterior, of the same parameters, priors and (for GVI) family, and not at the prior: at
      what a smaller model of the same kind has learnt, say.
    - `progress`: a bar on standard error, or an object of one's own.
    - `check_gradients`: at the start, set the gradient beside central differences, parameter by parameter
      (`diagnostics.start_check`); by default where progress is shown.
    - `throw`: raise `CalibrationError` if it did not end well; otherwise the result code says so.

    **Returns:** a `Calibration`. An interrupt (Ctrl-C) ends the run between updates, with the best so far.
    """
    method = GVI() if method is None else method
    prior = priors if isinstance(priors, Prior) else Prior.of(problem, priors)
    method.check(problem, prior)
    total, every = method.max_updates, method.evaluate_every
    check_gradients = progress is not False if check_gradients is None else check_gradients
    if isinstance(progress, bool):
        progress = TerminalProgress(total) if progress else NoProgress()
    started = time.perf_counter()

    method, plan = method.planned(problem, prior)
    if plan is not None:
        progress.note(table("Plan", PLAN_COLUMNS, plan.rows()))
    planned = time.perf_counter() - started
    checked, watch = None, Watch(total)
    if check_gradients and isinstance(method, GVI):
        checked = start_check(problem, prior, method, posterior=start, seed=seed)
        if checked is not None:
            progress.note(table("Gradients at the start", ("parameter", "gradient / differences"), checked.rows()))
            if checked.warning():
                progress.note(checked.warning())
        elif prior.dim > MOST_CHECKED:
            progress.note(f"Gradients are set beside differences at the start for at most {MOST_CHECKED} numbers.")
    before_updates = time.perf_counter() - started
    state = method.init(problem, prior, seed, start)
    best, history, records = state, [_row(0, method.evaluate(problem, state, _FIXED))], []
    result, compiled, piece = None, 0.0, _piece(every)

    def evaluated() -> dict[str, Any]:
        nonlocal best
        history.append(_row(int(state.update), method.evaluate(problem, state, _FIXED)))
        if method.best(history) == len(history) - 1:
            best = state
        return history[-1]

    with progress:
        try:
            while result is None:
                block, updates, left = [], 0, min(every, total - int(state.update))
                while left > 0:
                    now, updates = time.perf_counter(), min(piece, left)
                    moved, record = method.step(problem, state, updates)
                    block.append(
                        jax.tree.map(np.asarray, record)
                    )  # waits: an interrupt here leaves the state as it was
                    state = moved
                    records.append(block[-1])
                    compiled = compiled or time.perf_counter() - now
                    left -= updates
                    if left > 0:
                        progress.advance(updates, f"loss {block[-1].loss[-1]:.4g}")
                row = evaluated()
                failed = 1 - np.mean(_joined(block)["finite"])
                result = Result.TOO_MANY_FAILURES if failed > method.max_failed_fraction else method.terminate(history)
                message = f"loss {row['loss']:.4g}" + (f", KL {row['kl']:.3g}" if np.isfinite(row["kl"]) else "")
                progress.advance(updates, message + (f", {failed:.0%} failed" if failed else ""))
                for signature in watch(history, _joined(block)):
                    progress.note(f"Watch out: {signature}.")
        except KeyboardInterrupt:
            result = Result.INTERRUPTED
            if int(state.update) > history[-1]["update"]:
                evaluated()
    evaluation = method.evaluate(problem, best, _FRESH)
    runs = method.runs_an_update(problem, prior.dim)
    calibration = _finish(method, best, result, evaluation, history, records, runs, seed)
    seconds = time.perf_counter() - started
    calibration.timings.update(total=seconds, first_updates=compiled)
    if plan is not None:
        calibration.timings["planning"] = planned
    if checked is not None:
        calibration.timings["gradient_check"] = before_updates - planned
    calibration = dataclasses.replace(
        calibration,
        plan=None if plan is None else plan.describe(),
        gradient_check=None if checked is None else checked.describe(),
        signatures=[dataclasses.asdict(s) for s in watch.seen],
    )
    if throw and not result.successful and result is not Result.INTERRUPTED:
        raise CalibrationError(calibration)
    return calibration


def _joined(block: list[Any]) -> dict[str, np.ndarray]:
    """Records of updates, by name."""
    names = ("loss", "gradient_norm", "signal_to_noise", "finite")
    return {name: np.concatenate([getattr(record, name) for record in block]) for name in names}


def _piece(every: int) -> int:
    """Updates at a time between evaluations: a tenth of them or fewer, dividing them, so that progress shows."""
    return next(n for n in range(max(1, every // 10), 0, -1) if every % n == 0)


def _row(update: int, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "update": update,
        "loss": float(evaluation.loss),
        "kl": float(evaluation.kl),
        "objective": float(evaluation.objective),
        "standard_error": float(evaluation.standard_error),
        "failed": int(evaluation.failed),
        **{name: float(x) for name, x in evaluation.extra.items()},
    }


def _finish(
    method: AbstractMethod, best, result: Result, evaluation, history, records, runs: int, seed: int
) -> Calibration:
    fields = ("loss", "kl", "objective", "gradient_norm", "signal_to_noise")
    updates = {
        name: np.concatenate([getattr(r, name) for r in records] or [np.zeros(0)]).astype(float) for name in fields
    }
    prior = best.posterior.prior
    dim = prior.dim
    finite = np.concatenate([r.finite.ravel() for r in records] or [np.zeros(0, bool)])
    z = np.concatenate([r.coordinates.reshape(-1, dim) for r in records] or [np.zeros((0, dim))])
    extra = records[0].extra if records else {}
    updates |= {name: np.concatenate([r.extra[name] for r in records]).astype(float) for name in extra}
    updates["failed"] = np.concatenate([np.sum(~r.finite, axis=1) for r in records] or [np.zeros(0)])
    failed = z[~finite][:_KEPT_FAILURES]
    failures = jax.vmap(prior.constrain)(failed) if len(failed) else {}
    last = history[-1]
    reasons: dict[Result, str] = {
        Result.CONVERGED: "No improvement on the evaluation set for as long as `patience` allows.",
        Result.MAX_UPDATES: "All updates were made.",
        Result.BUDGET_SPENT: "All simulations that were allowed were made.",
        Result.INTERRUPTED: "Interrupted; the posterior is the best so far.",
        Result.TOO_MANY_FAILURES: (
            f"{_failed_of(records[-1])} of the last simulations were not finite, more than `max_failed_fraction` "
            "allows; see `failures` for where in parameter space, and narrow the prior there."
            if records
            else ""
        ),
        Result.NON_FINITE: (
            f"The objective at update {last['update']} is not finite: no simulation of the evaluation set was."
        ),
    }
    return Calibration(
        posterior=best.posterior,
        result=result,
        reason=(method.explain(result) or reasons[result])
        + (" None was better than the start." if method.best(history) == 0 else ""),
        evaluation={k: v for k, v in _row(0, evaluation).items() if k != "update"},
        history=history,
        updates=updates,
        failures={k: np.asarray(v) for k, v in failures.items()},
        n_simulations=int(np.sum(updates["simulations"])) if "simulations" in updates else len(updates["loss"]) * runs,
        n_failed=int(np.sum(~finite)),
        seed=seed,
        timings={},
        method=type(method).__name__,
        diagnostics=method.diagnose(best),
    )


def _failed_of(record: Any) -> str:
    return f"{np.sum(~record.finite)} of {record.finite.size}"
