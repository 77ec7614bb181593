"""One run of a simulator, checked: what a worker does."""

import abc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

#: Name -> shape of what a run returns; the name of an output without one is "".
Shapes = Mapping[str, tuple[int, ...]]
#: The outputs of a run; or `None`, what went wrong in one line, and all that is known of it.
Outcome = tuple[dict[str, np.ndarray] | None, str, str]


class RunFailed(Exception):
    """A run that went wrong. `details`: standard error or a traceback, of any length."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


class AbstractSimulator(abc.ABC):
    """How one run is made. It is pickled and sent to workers."""

    #: Whether runs need a process each, or wait for another program in a thread.
    prefers: Literal["processes", "threads"]

    @abc.abstractmethod
    def check(self, parameters: Sequence[str]) -> None:
        """Refuse, with a `ValueError`, parameters of these names if they cannot be passed on."""

    @abc.abstractmethod
    def run(self, params: dict[str, Any], seed: int, shapes: Shapes, timeout: float | None) -> Any:
        """The outputs of one run: name -> array, or an array where the one output has no name.

        **Arguments:** `params`, name -> float, or NumPy array of the parameter's shape; `seed`, from 0 to 2^31 - 1;
        `shapes`, of the outputs that are needed; `timeout` in seconds, after which the run has to be ended.

        **Raises:** `RunFailed`, or anything else, where the run went wrong.
        """


def attempt(
    simulator: AbstractSimulator, params: dict[str, Any], seed: int, shapes: Shapes, timeout: float | None, retries: int
) -> Outcome:
    """A run, made again up to `retries` times if it goes wrong; what it returns is checked."""
    message, details = "", ""
    for _ in range(retries + 1):
        try:
            return checked_outputs(simulator.run(params, seed, shapes, timeout), shapes), "", ""
        except RunFailed as error:
            message, details = str(error), error.details
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the interrupt is for the main process to heed
            message, details = f"{type(error).__name__}: {error}", traceback.format_exc()
    return None, " ".join(message.split()), details


def numbered(i: int, call: Callable[[], Outcome]) -> tuple[int, Outcome, float]:
    """What a call returns, with its number, since runs end in any order, and the seconds that it took."""
    start = time.perf_counter()
    return i, call(), time.perf_counter() - start


def checked_outputs(raw: Any, shapes: Shapes) -> dict[str, np.ndarray]:
    """The declared outputs of what a run returned.

    **Raises:** `RunFailed` for one that is missing, of another shape or not finite.
    """
    named = {"": raw} if "" in shapes else raw
    if not isinstance(named, Mapping):
        raise RunFailed(f"the run returned a {type(raw).__name__}, not a mapping of {', '.join(shapes)}")
    out = {}
    for name, shape in shapes.items():
        called = f"output '{name}'" if name else "the output"
        if name not in named:
            raise RunFailed(f"{called} is missing; the run returned {', '.join(map(str, named)) or 'none'}")
        try:
            array = np.asarray(named[name], dtype=float)
        except (TypeError, ValueError) as error:
            raise RunFailed(f"{called} is no array of numbers ({error})") from error
        array = array.reshape(1) if array.shape == () and shape == (1,) else array
        if array.shape != shape:
            raise RunFailed(f"{called} has shape {array.shape}, and {shape} was declared")
        if not np.all(np.isfinite(array)):
            raise RunFailed(f"{called} is not finite")
        out[name] = array
    return out
