"""`BlackBox`: a simulator of which nothing is known but what it returns."""

import datetime
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from calibrant._model import Params, no_derivative
from calibrant.black_box._executor import AbstractExecutor, Joblib
from calibrant.black_box._failures import Failures
from calibrant.black_box._foreign import (
    AbstractForeignModel,
    AbstractRuns,
    as_type,
    check_count,
    checked_dates,
    failures_kept,
    named,
    output_shapes,
    rows,
)
from calibrant.black_box._parameters import params_class
from calibrant_worker import AbstractSimulator, PythonFunction, RunFailed, Shapes, attempt


class BlackBox(AbstractForeignModel):
    """Another simulator as a model: a Python callable, or an external program (`Command`).

    All simulations of a batch are handed to workers at once. Whatever takes no derivative works as with any model:
    `simulate`, `expect`, `calibrate` with `GVI(estimator=FlowScore())` or `FiniteDifferences()`, reports. A run is
    given a seed drawn from that of the simulation: equal seeds give equal runs, whatever the workers.

    **Arguments:**

    - `run`: a function `run(params, seed)`, or an `AbstractSimulator` such as `Command`. `params` maps names to floats,
      or NumPy arrays; `seed` is an integer from 0 to 2^31 - 1, from which the function makes all its random numbers.
      It returns its outputs by name, or the one output.
    - `parameters`: name -> `calibrant.parameter(...)`; or a `Params` class.
    - `outputs`: name -> shape, of at least one axis, or the shape of the one output without a name. The first axis is
      time.
    - `executor`: `Joblib()` by default, with a worker a core.
    - `timeout`: seconds that a run may take. `retries`: how often a run that went wrong is made again, with the same
      seed.
    - `keep_errors_in`: a directory, for the standard error or traceback of runs that went wrong, with their parameters
      and seed, of the first `most_kept` of them.
    - `dates`: of the outputs, if they have a calendar.

    A run fails if it raises, takes too long, ends with another exit code than 0, or returns what was not declared or is
    not finite. All its outputs are then NaN, and the calibration leaves it out and counts it. The first failure is
    logged as a warning (logger `calibrant`).

    **Raises:** `ValueError` for what cannot be run.
    """

    parameters: type[Params] = eqx.field(static=True)
    runs: "_Runs" = eqx.field(static=True)
    calendar: tuple[datetime.date, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        run: "Callable[[dict[str, Any], int], Any] | AbstractSimulator",
        *,
        parameters: "type[Params] | Mapping[str, Any]",
        outputs: "Mapping[str, Any] | Sequence[int] | int",
        executor: AbstractExecutor | None = None,
        timeout: float | None = None,
        retries: int = 0,
        keep_errors_in: "str | Path | None" = None,
        most_kept: int = 20,
        dates: Sequence[datetime.date] | None = None,
    ):
        self.parameters = params_class(parameters)
        simulator = run if isinstance(run, AbstractSimulator) else PythonFunction(run)
        executor = Joblib() if executor is None else executor
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"BlackBox needs a positive `timeout` in seconds, got {timeout}.")
        check_count("BlackBox", "retries", retries)
        simulator.check(tuple(self.parameters.describe()))
        executor.check(simulator.prefers, _must_end(simulator, timeout))
        failures = failures_kept("BlackBox", keep_errors_in, most_kept)
        self.runs = _Runs(simulator, output_shapes(outputs), executor, timeout, retries, failures, no_derivative(self))
        self.calendar = checked_dates(self, dates)

    @property
    def differentiable(self):
        return False

    def make(self, params, words):
        return _run(params, words=words, runs=self.runs)


@eqx.filter_custom_jvp
def _run(params: Any, *, words: UInt32[Array, "2"], runs: "_Runs") -> dict[str, Array]:
    dtype = jnp.result_type(float)
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in runs.shapes.items()}
    return jax.pure_callback(functools.partial(runs, dtype), shapes, named(params), words, vmap_method="broadcast_all")


@_run.def_jvp
def _no_derivative(primals: Any, tangents: Any, *, words: Any, runs: Any) -> PyTree:
    del primals, tangents, words
    raise ValueError(runs.no_derivative)


class _Runs(AbstractRuns):
    """Hands the runs of a batch to workers."""

    def __init__(
        self,
        simulator: AbstractSimulator,
        shapes: Shapes,
        executor: AbstractExecutor,
        timeout: float | None,
        retries: int,
        failures: Failures,
        no_derivative: str,
    ):
        self._simulator, self._executor = simulator, executor
        self._timeout, self._retries = timeout, retries
        self.shapes, self.failures, self.no_derivative = shapes, failures, no_derivative

    def __call__(self, dtype: Any, params: dict[str, Any], words: Any) -> dict[str, np.ndarray]:
        given, seeds, batch = rows(params, words)
        count = len(given)
        calls = [
            functools.partial(attempt, self._simulator, p, s, dict(self.shapes), self._timeout, self._retries)
            for p, s in zip(given, seeds, strict=True)
        ]
        must_end = _must_end(self._simulator, self._timeout)
        outcomes = self._executor.run(calls, self._simulator.prefers, must_end)
        out = {name: np.full((count, *shape), np.nan, dtype) for name, shape in self.shapes.items()}
        failed = []
        for i, (made, message, details) in enumerate(outcomes):
            try:
                if made is None:
                    raise RunFailed(message, details)
                for name, x in as_type(made, dtype).items():
                    out[name][i] = x
            except RunFailed as error:
                failed.append((given[i], seeds[i], str(error), error.details))
        self.failures.add(count, failed)
        return {name: x.reshape(*batch, *x.shape[1:]) for name, x in out.items()}


def _must_end(simulator: AbstractSimulator, timeout: float | None) -> bool:
    """Whether a run is timed out by ending the process that it is in."""
    return timeout is not None and simulator.prefers == "processes"
