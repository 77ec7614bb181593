"""What models have in common whose runs are made outside of JAX."""

import abc
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from calibrant._model import AbstractModel, Params
from calibrant.black_box._failures import Failure, Failures
from calibrant_worker import RunFailed, Shapes


class AbstractRuns(abc.ABC):
    """Makes the runs of a batch. Equal to itself alone, so that programs are compiled once for each."""

    #: Name -> shape; "" is an output without a name.
    shapes: Shapes
    failures: Failures


class AbstractForeignModel(AbstractModel):
    """A simulator of which all steps of a run are made at once, outside of JAX.

    The loop over time passes on the words of the run's seed, and `summarise` makes the run.
    """

    parameters: eqx.AbstractVar[type[Params]]
    runs: eqx.AbstractVar[AbstractRuns]
    calendar: eqx.AbstractVar[tuple[datetime.date, ...] | None]

    @abc.abstractmethod
    def make(self, params: Any, words: UInt32[Array, "2"]) -> dict[str, Array]:
        """The outputs of a run."""

    @property
    def Params(self) -> type[Params]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The class of its parameters, made of `parameters`."""
        return self.parameters

    @property
    def in_jax(self):
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

    def summarise(self, params, outputs) -> PyTree[Array]:
        """The outputs of the run; of fewer steps than it has, the first so many times of outputs over all of them."""
        steps, whole = outputs.shape[0], self.default_steps
        if steps > whole:
            raise ValueError(
                f"{type(self).__name__} has outputs at {whole} times, and {steps} steps were asked for; leave `steps` "
                "out."
            )
        made = self.make(params, outputs[0])
        cut = {name: x[:steps] if x.shape[0] == whole else x for name, x in made.items()}
        return cut.get("", cut)


def named(params: Params) -> dict[str, Any]:
    """Parameters by name."""
    return {name: getattr(params, name) for name in params.describe()}


def rows(params: dict[str, Any], words: Any) -> tuple[list[dict[str, Any]], list[int], tuple[int, ...]]:
    """Of a batch that JAX hands over: parameters and seed of each run, and the batch's shape.

    NumPy from here on: a callback that calls JAX may wait for itself.
    """
    words = np.asarray(words)
    batch = words.shape[:-1]
    flat = words.reshape(-1, 2)
    count = flat.shape[0]
    each = {k: np.asarray(x, float).reshape(count, *np.shape(x)[len(batch) :]) for k, x in params.items()}
    given = [{k: x[i] if x.ndim > 1 else float(x[i]) for k, x in each.items()} for i in range(count)]
    return given, [int(w[0]) >> 1 for w in flat], batch  # 31 bits, which fit an int of any language


def as_type(made: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """Outputs as numbers of JAX.

    **Raises:** `RunFailed` for what is too large for them.
    """
    with np.errstate(over="ignore"):
        out = {name: x.astype(dtype) for name, x in made.items()}
    for name, x in out.items():
        if not np.all(np.isfinite(x)):
            raise RunFailed(f"output '{name}' is too large for {np.dtype(dtype)}")
    return out


def output_shapes(outputs: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape.

    **Raises:** `ValueError` for what is no shape of at least one axis.
    """
    by_name = outputs if isinstance(outputs, Mapping) else {"": outputs}
    if not by_name or (isinstance(outputs, Mapping) and "" in outputs):
        raise ValueError("`outputs` is a mapping of names to shapes, or the shape of one output without a name.")
    out = {}
    for name, shape in by_name.items():
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
            called = f" of output '{name}'" if name else ""
            raise ValueError(
                f"The shape{called} is whole numbers >= 1, such as (60,), or (1,) for one number, got {shape}."
            )
        out[str(name)] = shape
    return out


def checked_dates(
    model: AbstractForeignModel, dates: Sequence[datetime.date] | None
) -> tuple[datetime.date, ...] | None:
    """`dates`, one an output time.

    **Raises:** `ValueError` for another number of them.
    """
    if dates is not None and len(dates) != model.default_steps:
        raise ValueError(f"{type(model).__name__} has {model.default_steps} output times and {len(dates)} dates.")
    return None if dates is None else tuple(dates)


def failures_kept(name: str, directory: "str | Path | None", most: int) -> Failures:
    """Where errors are kept.

    **Raises:** `ValueError`.
    """
    check_count(name, "most_kept", most)
    return Failures(None if directory is None else Path(directory), most)


def check_count(name: str, field: str, value: Any) -> None:
    """Refuse, with a `ValueError`, what is no whole number >= 0."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} needs `{field}` to be a whole number >= 0, got {value!r}.")
