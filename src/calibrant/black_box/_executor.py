"""Where runs are made: joblib's workers."""

import abc
import collections
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

from calibrant_worker import Outcome, numbered

#: Seconds of runs that are sent to a worker together.
_TOGETHER = 0.05
Call = Callable[[], Outcome]
_DIED: Outcome = (
    None,
    "the worker process ended: a crash, a lack of memory, or compiled code that ran out of time",
    "",
)


class AbstractExecutor(abc.ABC):
    """Makes many runs."""

    @abc.abstractmethod
    def check(self, prefers: Literal["processes", "threads"], must_end: bool) -> None:
        """Refuse, with a `ValueError`, runs that cannot be made here; see `run`."""

    @abc.abstractmethod
    def run(self, calls: Sequence[Call], prefers: Literal["processes", "threads"], must_end: bool) -> list[Outcome]:
        """What each call returns, in order, whatever the order in which they were made.

        **Arguments:** `calls`, picklable functions without arguments; `prefers`, where they had best be made;
        `must_end`, that each may have to be ended by ending its process.
        """


class Joblib(AbstractExecutor):
    """joblib's workers: processes for Python functions, threads for external programs.

    **Arguments:** `workers`, how many at once; as many as there are cores by default, and 1 is this process. `backend`:
    the name of a joblib backend, or one itself; by default that of the `joblib.parallel_config` in which this object
    is made (with a Dask client, `parallel_config(backend="dask")`), else joblib's own.
    """

    def __init__(self, workers: int | None = None, backend: Any = None):
        if workers is not None and workers != -1 and not (isinstance(workers, int) and workers >= 1):
            raise ValueError(f"Joblib needs a number of workers of at least 1, or -1 for all cores, got {workers!r}.")
        # The configuration is of this thread, and runs are started by another: it is taken over now.
        self._backends: dict[str, Any] = {}
        for prefers in ("processes", "threads"):
            with joblib.parallel_config(**({} if backend is None else {"backend": backend})):
                self._backends[prefers], jobs = get_active_backend(prefer=prefers)
        self._jobs = workers or jobs or -1
        self._seconds: float | None = None  # of a run, as far as is known

    def check(self, prefers, must_end):
        backend = self._backends[prefers]
        if must_end and getattr(backend, "uses_threads", False):
            raise ValueError(
                f"A Python function cannot be timed out in a thread ({type(backend).__name__}); "
                "use worker processes, or leave `timeout` out."
            )

    def run(self, calls, prefers, must_end):
        done: dict[int, Outcome] = {}
        waiting = collections.deque(range(len(calls)))
        while waiting:
            started: list[int] = []
            try:
                done.update(self._made(calls, waiting, started, prefers, must_end))
            except _Broken as broken:  # which of those that had started did it? each has another go, alone
                done.update(broken.done)
                for i in started:
                    if i not in done:
                        done[i] = self._alone(calls[i], prefers)
        return [done[i] for i in range(len(calls))]

    def _made(
        self, calls: Sequence[Call], waiting: "collections.deque[int]", started: list[int], prefers: str, must_end: bool
    ) -> dict[int, Outcome]:
        backend, jobs, pre_dispatch = self._backends[prefers], self._jobs, "2 * n_jobs"
        if must_end and backend.effective_n_jobs(jobs) == 1:
            jobs, pre_dispatch = 2, "1"  # joblib takes 1 for this process: two, of which one has work
        many = getattr(backend, "supports_return_generator", False)

        def each() -> Iterator[Any]:
            while waiting:
                started.append(waiting.popleft())
                yield joblib.delayed(numbered)(started[-1], calls[started[-1]])

        size: Any = "auto"
        if self._seconds is not None:  # short runs go together, but at the end all workers are to be busy
            share = len(calls) // (4 * backend.effective_n_jobs(jobs))
            size = max(1, min(int(_TOGETHER / max(self._seconds, 1e-6)), share))
        out: dict[int, Outcome] = {}
        took: list[float] = []
        try:
            parallel: Any = joblib.Parallel(
                n_jobs=jobs,
                backend=backend,
                pre_dispatch=pre_dispatch,
                batch_size=size,
                return_as="generator_unordered" if many else "list",
            )
            for i, outcome, seconds in parallel(each()):
                out[i] = outcome
                took.append(seconds)
        except TerminatedWorkerError:
            raise _Broken(out) from None
        except Exception as error:  # what cannot be pickled, a cluster that went away
            why = " ".join(f"{type(error).__name__}: {error}".split())
            failed: Outcome = (
                None,
                f"it could not be given to a worker ({why})",
                "".join(traceback.format_exception(error)),
            )
            unmade = [*(i for i in started if i not in out), *waiting]
            waiting.clear()
            out.update(dict.fromkeys(unmade, failed))
        if took:
            self._seconds = statistics.median(took)
        return out

    def _alone(self, call: Call, prefers: str) -> Outcome:
        try:
            return self._made([call], collections.deque([0]), [], prefers, True)[0]
        except _Broken:
            return _DIED


class _Broken(Exception):
    """A worker ended; `done`: the runs that had been made."""

    def __init__(self, done: dict[int, Outcome]):
        super().__init__()
        self.done = done
