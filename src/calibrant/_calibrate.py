"""`calibrate`: the loop over a method's public `init`, `step`, `evaluate` and `terminate`."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist

from calibrant._book import Book
from calibrant._calibration import Calibration, versions
from calibrant._checkpoints import Checkpoint, Checkpoints, fingerprint
from calibrant._devices import place
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._processes import any_interrupted, interrupts_noted
from calibrant._progress import AbstractProgress, NoProgress, TerminalProgress, table
from calibrant.diagnostics import start_check
from calibrant.diagnostics._start import MOST_CHECKED
from calibrant.inference import GVI, AbstractMethod, Evaluation, Result
from calibrant.inference._planner import PLAN_COLUMNS
from calibrant.inference._watch import WATCHED, Signature, Watch
from calibrant.posteriors import Posterior

_FIXED, _FRESH = 0, 1


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
    checkpoints: Checkpoints | None = None,
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
    - `checkpoints`: where a run that may be killed is kept. If there are some of this run, it goes on from the newest,
      to the same bits as if it had never been stopped.
    - `throw`: raise `CalibrationError` if it did not end well; otherwise the result code says so.

    **Returns:** a `Calibration`. An interrupt (Ctrl-C) ends the run between updates, with the best so far.

    **Raises:** `ValueError` for what cannot work, for `checkpoints` of another run and for those of a run that another
    process is at; `CalibrationError`, see `throw`.
    """
    method = GVI() if method is None else method
    prior = priors if isinstance(priors, Prior) else Prior.of(problem, priors)
    method.check(problem, prior)
    total, every = method.max_updates, method.evaluate_every
    check_gradients = progress is not False if check_gradients is None else check_gradients
    if isinstance(progress, bool):
        progress = TerminalProgress(total) if progress else NoProgress()
    with NoProgress() if checkpoints is None else checkpoints:
        placed = eqx.tree_at(lambda p: p.model, problem, place(problem.model, problem.model.n_agents))
        run = _Run(placed, prior, method, seed, progress)
        saved = None if checkpoints is None else checkpoints.latest()
        marks = {} if checkpoints is None else _marks(problem, prior, method, seed, start)
        if saved is None:
            run.begin(start, check_gradients)
        else:
            _refuse_other(marks, saved, checkpoints)
            run.restore(saved)
        result = _loop(run, total, every, lambda now: run.checkpoint(checkpoints, marks, now=now))
        calibration = run.finish(result)
    if throw and not result.successful and result is not Result.INTERRUPTED:
        raise CalibrationError(calibration)
    return calibration


class _Run:
    """A calibration under way: its state, and all that is told of it in the end."""

    def __init__(self, problem: Problem, prior: Prior, method: AbstractMethod, seed: int, progress: AbstractProgress):
        self.problem, self.prior, self.method, self.seed, self.progress = problem, prior, method, seed, progress
        self.book, self.watch = Book(method.max_updates, prior.dim), Watch(method.max_updates)
        self.history: list[dict[str, Any]] = []
        self.plan: dict[str, Any] | None = None
        self.gradient_check: dict[str, Any] | None = None
        self.timings: dict[str, float] = {}
        self._started = time.perf_counter()
        self._told = False

    def begin(self, start: Posterior | None, check_gradients: bool) -> None:
        """Plan, check the gradients, and evaluate where it starts."""
        problem, prior, progress = self.problem, self.prior, self.progress
        self.method, plan = self.method.planned(problem, prior)
        if plan is not None:
            progress.note(table("Plan", PLAN_COLUMNS, plan.rows()))
            self.plan = plan.describe()
            self.timings["planning"] = time.perf_counter() - self._started
        now = time.perf_counter()
        if check_gradients:
            checked = start_check(problem, prior, self.method, posterior=start, seed=self.seed)
            if checked is not None:
                progress.note(table("Gradients at the start", ("parameter", "gradient / differences"), checked.rows()))
                if checked.warning():
                    progress.note(checked.warning())
                self.gradient_check = checked.describe()
                self.timings["gradient_check"] = time.perf_counter() - now
            elif isinstance(self.method, GVI) and prior.dim > MOST_CHECKED:
                progress.note(f"Gradients are set beside differences at the start for at most {MOST_CHECKED} numbers.")
        self.state = self.best = self.method.init(problem, prior, self.seed, start)
        self.evaluate()

    def restore(self, saved: Checkpoint) -> None:
        """Back to where a checkpoint was written."""
        facts = saved.facts
        self.method = self.method.settled(facts["plan"])
        skeleton = self.method.init(self.problem, self.prior, self.seed)
        self.state, self.best = (
            _with_prior(saved.tree(name, _with_prior(skeleton, None)), self.prior) for name in ("state", "best")
        )
        self.book.restore(saved.plain)
        self.history, self.plan, self.gradient_check = facts["history"], facts["plan"], facts["gradient_check"]
        self.watch.seen = [Signature(**s) for s in facts["signatures"]]
        self.timings = facts["timings"]
        self._started -= self.timings.pop("total")
        self.progress.note(f"Going on after update {self.update} of {self.method.max_updates}.")
        if facts["versions"] != versions():
            self.progress.note("Other versions of packages wrote the checkpoint; the bits may be others from here on.")

    def checkpoint(self, checkpoints: Checkpoints | None, marks: dict[str, str], *, now: bool) -> None:
        """Write one, if it is time. A full disk does not end a run: the checkpoints before are still there."""
        if checkpoints is None or not (now or checkpoints.due):
            return
        facts = {
            "marks": marks,
            "history": self.history,
            "plan": self.plan,
            "gradient_check": self.gradient_check,
            "signatures": [dataclasses.asdict(s) for s in self.watch.seen],
            "timings": {**self.timings, "total": self._seconds},
            "versions": versions(),
        }
        try:
            states = {"state": _with_prior(self.state, None), "best": _with_prior(self.best, None)}
            checkpoints.write(self.update, facts, states, self.book.arrays())
        except OSError as error:
            if not self._told:
                self.progress.note(f"A checkpoint could not be written ({error}); the run goes on without.")
            self._told = True

    @property
    def update(self) -> int:
        """Updates made."""
        return int(self.state.update)

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def step(self, updates: int) -> float:
        """So many updates; returns the last loss. An interrupt leaves the run as it was before."""
        now = time.perf_counter()
        moved, record = self.method.step(self.problem, self.state, updates)
        record = jax.tree.map(np.asarray, record)  # waits
        self.state = moved
        self.book.add(record)
        self.timings.setdefault("first_updates", time.perf_counter() - now)
        return float(record.loss[-1])

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the objective on the fixed set, and keep the best."""
        self.history.append(_row(self.update, self.method.evaluate(self.problem, self.state, _FIXED)))
        if self.method.best(self.history) == len(self.history) - 1:
            self.best = self.state
        return self.history[-1]

    def finish(self, result: Result) -> Calibration:
        """What is given back."""
        evaluation = self.method.evaluate(self.problem, self.best, _FRESH)
        book, history, updates = self.book, self.history, self.book.scalars()
        constrain = jax.vmap(self.prior.constrain)

        def named(z: np.ndarray) -> dict[str, np.ndarray]:
            values = constrain(jax.numpy.asarray(z, dtype=float)) if len(z) else {}
            return {name: np.asarray(x) for name, x in values.items()}

        last = book.scalars(max(book.updates - 1, 0))["failed"]
        reasons: dict[Result, str] = {
            Result.CONVERGED: "No improvement on the evaluation set for as long as `patience` allows.",
            Result.MAX_UPDATES: "All updates were made.",
            Result.BUDGET_SPENT: "All simulations that were allowed were made.",
            Result.INTERRUPTED: "Interrupted; the posterior is the best so far.",
            Result.TOO_MANY_FAILURES: (
                f"{last[-1]:.0f} of the {book.seen // book.updates} simulations of the last update were not finite, "
                "and more than `max_failed_fraction` allows since the last evaluation; see `failures` for where in "
                "parameter space, and narrow the prior there."
                if book.updates
                else ""
            ),
            Result.NON_FINITE: (
                f"The objective at update {history[-1]['update']} is not finite: no simulation of the evaluation set "
                "was."
            ),
        }
        diagnostics = self.method.diagnose(self.best)
        for name, text in self.method.warn(diagnostics).items():
            self.watch.seen.append(Signature(name, book.updates, text))
            self.progress.note(str(self.watch.seen[-1]))
        after = " None was better than the start." if self.method.best(history) == 0 else ""
        if self.problem.model.why_failed:
            after += f" {self.problem.model.why_failed}"
        return Calibration(
            posterior=self.best.posterior,
            result=result,
            reason=(self.method.explain(result) or reasons[result]) + after,
            evaluation={k: v for k, v in _row(0, evaluation).items() if k != "update"},
            history=history,
            updates=updates,
            failures=named(book.failures),
            successes=named(book.successes),
            n_simulations=(
                int(np.sum(updates["simulations"]))
                if "simulations" in updates
                else book.updates * self.method.runs_an_update(self.problem, self.prior.dim)
            ),
            n_failed=book.failed,
            n_values=book.seen,
            seed=self.seed,
            timings={"first_updates": 0.0, **self.timings, "total": self._seconds},
            plan=self.plan,
            gradient_check=self.gradient_check,
            signatures=[dataclasses.asdict(s) for s in self.watch.seen],
            method=type(self.method).__name__,
            diagnostics=diagnostics,
        )


def _loop(run: _Run, total: int, every: int, checkpoint: Callable[[bool], None]) -> Result:
    """Updates and evaluations until the method ends, or somebody interrupts."""
    progress, piece = run.progress, _piece(every)
    with progress, interrupts_noted():
        if run.update:
            progress.advance(run.update, f"loss {run.history[-1]['loss']:.4g}")
        try:
            result = _ended(run)
            while result is None:
                checkpoint(False)
                evaluated = run.history[-1]["update"]
                end, updates = min(evaluated + every, total), 0
                while run.update < end:
                    updates = min(piece, end - run.update)
                    loss = run.step(updates)
                    if any_interrupted():
                        raise KeyboardInterrupt
                    if run.update < end:
                        progress.advance(updates, f"loss {loss:.4g}")
                        checkpoint(False)
                row = run.evaluate()
                failed = float(np.mean(run.book.failed_share(evaluated)))
                message = f"loss {row['loss']:.4g}" + (f", KL {row['kl']:.3g}" if np.isfinite(row["kl"]) else "")
                progress.advance(updates, message + (f", {failed:.0%} failed" if failed else ""))
                since = max(0, min(evaluated, run.update - WATCHED))
                recent = run.book.scalars(since) | {"failed": run.book.failed_share(since)}
                for signature in run.watch(run.history, recent):
                    progress.note(f"Watch out: {signature}.")
                result = _ended(run)
        except KeyboardInterrupt:
            result = Result.INTERRUPTED
            checkpoint(True)
            if run.update > run.history[-1]["update"]:
                run.evaluate()
    return result


def _ended(run: _Run) -> Result | None:
    """Whether the last evaluation ends the run."""
    if len(run.history) < 2:  # where all simulations fail to begin with, there is nothing to learn from
        start = run.history[-1]
        return Result.NON_FINITE if start["failed"] and not np.isfinite(start["loss"]) else None
    failed = float(np.mean(run.book.failed_share(run.history[-2]["update"])))
    return Result.TOO_MANY_FAILURES if failed > run.method.allowed_failures else run.method.terminate(run.history)


def _with_prior(state: Any, prior: Prior | None) -> Any:
    """The state with another prior in its posterior: checkpoints hold none, for the reason in `_marks`."""
    return eqx.tree_at(lambda s: s.posterior.prior, state, prior, is_leaf=lambda x: x is None)


def _marks(
    problem: Problem, prior: Prior, method: AbstractMethod, seed: int, start: Posterior | None
) -> dict[str, str]:
    """What a run is, to be known again."""
    # A prior by what it does: numpyro orders the parts of a distribution otherwise in every process.
    z = jax.numpy.linspace(-2.0, 2.0, 7)[:, None] * jax.numpy.ones(prior.dim)
    priors = prior.names, jax.vmap(prior.constrain)(z), jax.vmap(prior.log_base)(z)
    flow = None if start is None else start.flow
    parts = {"model, data or loss": problem, "priors": priors, "method": method, "seed": seed, "start": flow}
    return {name: fingerprint(part) for name, part in parts.items()}


def _refuse_other(marks: dict[str, str], saved: Checkpoint, checkpoints: Any) -> None:
    for name, mark in saved.facts["marks"].items():
        if marks.get(name) != mark:
            raise ValueError(
                f"{checkpoints.directory} holds checkpoints of a run with another {name}; give another directory, or "
                "go on with what they were written with."
            )


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
        "left_out": int(evaluation.failed if evaluation.left_out is None else evaluation.left_out),
        **{name: float(x) for name, x in evaluation.extra.items()},
    }
