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

from calibrant._model import AbstractModel, Params, no_derivative
from calibrant.black_box._executor import AbstractExecutor, Joblib
from calibrant.black_box._failures import Failure, Failures
from calibrant.black_box._parameters import params_class
from calibrant_worker import AbstractSimulator, PythonFunction, Shapes, attempt


class BlackBox(AbstractModel):
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
        for name, value in (("retries", retries), ("most_kept", most_kept)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"BlackBox needs `{name}` to be a whole number >= 0, got {value!r}.")
        simulator.check(tuple(self.parameters.describe()))
        executor.check(simulator.prefers, _must_end(simulator, timeout))
        failures = Failures(None if keep_errors_in is None else Path(keep_errors_in), most_kept)
        self.runs = _Runs(simulator, _shapes(outputs), executor, timeout, retries, failures, no_derivative(self))
        self.calendar = None if dates is None else tuple(dates)
        if self.calendar is not None and len(self.calendar) != self.default_steps:
            raise ValueError(f"BlackBox has {self.default_steps} output times and {len(self.calendar)} dates.")

    @property
    def Params(self) -> type[Params]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The class of its parameters, made of `parameters`."""
        return self.parameters

    @property
    def differentiable(self):
        return False

    @property
    def why_failed(self):
        return self.runs.failures.sentence()

    @property
    def failures(self) -> list[Failure]:
        """The first runs that went wrong, up to `most_kept` of them."""
        return list(self.runs.failures.kept)

    @property
    def n_runs(self) -> int:
        """Runs made so far."""
        return self.runs.failures.runs

    @property
    def n_failed(self) -> int:
        """Runs that went wrong so far."""
        return self.runs.failures.failed

    @property
    def default_steps(self):
        return max(shape[0] for shape in self.runs.shapes.values())

    @property
    def dates(self):
        return self.calendar

    def init(self, params, rng):
        return jax.random.key_data(rng.key("run"))

    def step(self, params, state, inputs_t, rng):
        return state

    def observe(self, params, state, inputs_t, rng):
        return state

    def summarise(self, params, outputs):
        """The outputs of the run; of fewer steps than it has, the first so many times of outputs over all of them."""
        steps, whole = outputs.shape[0], self.default_steps
        if steps > whole:
            raise ValueError(
                f"BlackBox has outputs at {whole} times, and {steps} steps were asked for; leave `steps` out."
            )
        made = _run(params, words=outputs[0], runs=self.runs)
        cut = {name: x[:steps] if x.shape[0] == whole else x for name, x in made.items()}
        return cut.get("", cut)


@eqx.filter_custom_jvp
def _run(params: Any, *, words: UInt32[Array, "2"], runs: "_Runs") -> dict[str, Array]:
    named = {name: getattr(params, name) for name in params.describe()}
    dtype = jnp.result_type(float)
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in runs.shapes.items()}
    return jax.pure_callback(functools.partial(runs, dtype), shapes, named, words, vmap_method="broadcast_all")


@_run.def_jvp
def _no_derivative(primals: Any, tangents: Any, *, words: Any, runs: Any) -> PyTree:
    del primals, tangents, words
    raise ValueError(runs.no_derivative)


class _Runs:
    """Makes the runs of a batch; what happens outside of JAX. Equal to itself alone."""

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
        # NumPy from here on: a callback that calls JAX may wait for itself.
        words = np.asarray(words)
        batch = words.shape[:-1]
        flat = words.reshape(-1, 2)
        count = flat.shape[0]
        each = {k: np.asarray(x, float).reshape(count, *np.shape(x)[len(batch) :]) for k, x in params.items()}
        given = [{k: x[i] if x.ndim > 1 else float(x[i]) for k, x in each.items()} for i in range(count)]
        seeds = [int(w[0]) >> 1 for w in flat]  # 31 bits, which fit an int of any language
        calls = [
            functools.partial(attempt, self._simulator, p, s, dict(self.shapes), self._timeout, self._retries)
            for p, s in zip(given, seeds, strict=True)
        ]
        must_end = _must_end(self._simulator, self._timeout)
        outcomes = self._executor.run(calls, self._simulator.prefers, must_end)
        out = {name: np.full((count, *shape), np.nan, dtype) for name, shape in self.shapes.items()}
        failed = []
        for i, (made, message, details) in enumerate(outcomes):
            if made is None:
                failed.append((given[i], seeds[i], message, details))
                continue
            for name, x in made.items():
                out[name][i] = x
        self.failures.add(count, failed)
        return {name: x.reshape(*batch, *x.shape[1:]) for name, x in out.items()}


def _must_end(simulator: AbstractSimulator, timeout: float | None) -> bool:
    """Whether a run is timed out by ending the process that it is in."""
    return timeout is not None and simulator.prefers == "processes"


def _shapes(outputs: Any) -> dict[str, tuple[int, ...]]:
    named = outputs if isinstance(outputs, Mapping) else {"": outputs}
    if not named or (isinstance(outputs, Mapping) and "" in outputs):
        raise ValueError("`outputs` is a mapping of names to shapes, or the shape of one output without a name.")
    out = {}
    for name, shape in named.items():
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
            called = f" of output '{name}'" if name else ""
            raise ValueError(
                f"The shape{called} is whole numbers >= 1, such as (60,), or (1,) for one number, got {shape}."
            )
        out[str(name)] = shape
    return out
