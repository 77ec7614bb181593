"""Several processes that run one program on the devices of them all (`jax.distributed`).

All run the same Python code and so enter the same programs in the same order. What they could disagree on (a clock,
free memory, an interrupt that reaches one first) is settled by the first process, or by all together, before anybody
acts.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from calibrant._jax import broadcast_one_to_all, process_allgather, sync_global_devices


def is_first() -> bool:
    """Whether this is the process that writes and reports."""
    return jax.process_index() == 0


def told_by_first(x: float) -> float:
    """The number of the first process."""
    if jax.process_count() == 1:
        return x
    # In two words: JAX would round 64 bits to 32.
    told = broadcast_one_to_all(np.array([x], np.float64).view(np.uint32))
    return float(np.asarray(told, np.uint32).view(np.float64)[0])


def least(x: int) -> int:
    """The smallest number of all processes."""
    if jax.process_count() == 1:
        return x
    # In two words: JAX would round 64 bits to 32.
    words = np.asarray(process_allgather(np.array([x >> 31, x & 0x7FFFFFFF], np.int32)))
    return min((int(high) << 31) | int(low) for high, low in words.reshape(-1, 2))


def wait_for_all(what: str) -> None:
    """Return once every process has come here."""
    if jax.process_count() > 1:
        sync_global_devices(what)


_noted = False


@contextlib.contextmanager
def interrupts_noted() -> Iterator[None]:
    """Of several processes, which must end after the same update: SIGINT and SIGTERM are noted and not raised.

    With one process nothing changes: an interrupt raises `KeyboardInterrupt` at once.
    """
    if jax.process_count() == 1:
        yield
        return

    def note(*_: Any) -> None:
        global _noted
        _noted = True

    before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def any_interrupted() -> bool:
    """Whether some process was sent an interrupt that it noted. All must ask."""
    return jax.process_count() > 1 and least(1 - int(_noted)) == 0
