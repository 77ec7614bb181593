"""A Python callable as a simulator, with an alarm."""

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from calibrant_worker._run import AbstractSimulator, RunFailed

#: Seconds after the alarm until a worker that did not heed it is killed, and between alarms.
_GRACE, _AGAIN = 5.0, 0.5


class _OutOfTime(BaseException):
    """Not an `Exception`, which a simulator may catch."""


class PythonFunction(AbstractSimulator):
    """Call `function(params, seed)` in a worker process.

    **Arguments:** `function`, or its name, `"module:function"`, which every worker imports itself; `directory`, where
    the module lies if it is not on Python's path.
    """

    prefers = "processes"

    def __init__(self, function: "Callable[[dict[str, Any], int], Any] | str", directory: str | None = None):
        if isinstance(function, str) and not all(function.partition(":")):
            raise ValueError(f"A simulator's name is 'module:function', got '{function}'.")
        self._function = function
        self._directory = directory

    def check(self, parameters):
        if not callable(self.function()):
            raise ValueError(f"The simulator '{self._function}' is no function.")

    def function(self) -> Callable[[dict[str, Any], int], Any]:
        """The function itself, imported if it was given by name."""
        if not isinstance(self._function, str):
            return self._function
        module, _, name = self._function.partition(":")
        if self._directory is not None and self._directory not in sys.path:
            sys.path.insert(0, self._directory)
            try:
                return getattr(importlib.import_module(module), name)
            finally:
                sys.path.remove(self._directory)
        return getattr(importlib.import_module(module), name)

    def run(self, params, seed, shapes, timeout):
        function = self.function()
        if timeout is None:
            return function(params, seed)
        if threading.current_thread() is not threading.main_thread():
            raise RunFailed("a Python function can be timed out in the main thread of a worker process only")
        try:
            with _ended_after(timeout):
                return function(params, seed)
        except _OutOfTime as error:
            raise RunFailed(f"the run took more than {timeout:g} s", _where(error)) from None


def _where(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


@contextlib.contextmanager
def _ended_after(timeout: float) -> Iterator[None]:
    """Interrupt Python code by an alarm; where that is not heeded, in compiled code say, end the process."""
    inside = True

    def ring(*_: Any) -> None:
        if inside:
            raise _OutOfTime

    alarm = getattr(signal, "SIGALRM", None)  # not on Windows
    before = None if alarm is None else signal.signal(alarm, ring)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(timeout + _GRACE, exit=True, file=nowhere)
        try:
            if alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, timeout, _AGAIN)
            yield
        finally:
            inside = False
            if alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(alarm, before or signal.SIG_DFL)
            faulthandler.cancel_dump_traceback_later()
