"""What the benchmarks share: times and their spread, a memory copy to hold them against, peaks, files of results."""

import datetime as dt
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from calibrant._calibration import versions
from calibrant._files import write_text
from calibrant.inference._memory import resident_memory

COPIED = 100_000_000
_STARTED = time.perf_counter()


class Times(NamedTuple):
    """Seconds of each of several runs, and of the first before them, which compiles or warms up."""

    each: tuple[float, ...]
    first: float = float("nan")

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.each)

    @property
    def shortest(self) -> float:
        return min(self.each)

    @property
    def spread(self) -> float | None:
        return spread_of(self.each)

    def over(self, parts: int) -> "Times":
        """Of one part, where a run does so many."""
        return Times(tuple(x / parts for x in self.each), self.first)


def spread_of(values: Sequence[float]) -> float | None:
    """The interquartile range over the median; nothing is known of it from one value."""
    if len(values) == 1:
        return None
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle)


def timed(run: Callable[[], Any], repeats: int, at_least: float = 0.0) -> Times:
    """Times of so many runs after a first, and of more until so many seconds have passed."""
    first, times = once(run), []
    while len(times) < repeats or sum(times) < at_least:
        times.append(once(run))
    return Times(tuple(times), first)


def once(run: Callable[[], Any]) -> float:
    """Seconds of a run, waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def copying(size: int = COPIED, repeats: int = 9) -> Times:
    """Times of copying so many bytes from one array to another, both in memory already: a thread's plain copy."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return timed(lambda: np.copyto(target, source), repeats)


def peak_since(run: Callable[[], Any]) -> int:
    """Bytes of resident memory above what there was before, at the most. Linux only."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets the peak
    before = resident_memory() or 0
    run()
    with open("/proc/self/status", encoding="ascii") as lines:
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return peak - before


def about() -> dict[str, Any]:
    """The machine, the versions, the revision of the code and the date."""
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": platform.system(),
        "device": jax.devices()[0].device_kind,
    }
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"date": date, "revision": _revision(), "machine": machine, "versions": versions()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Of the checkout this file is in; `, changed` where the library or a benchmark differs from it."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "../src", "*.py")
    return f"{revision}, changed" if revision and changed else revision or None


def _git(*arguments: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # only looks
    command, folder = ["git", *arguments], Path(__file__).parent
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


class Results:
    """Rows of a benchmark; times also in copies of 100 MB, taken before and after them. Written as the block ends.

    A row is `{"name", "seconds", "spread", "copies"}` or, of memory, `{"name", "bytes", "spread"}`; what else a
    benchmark knows of it stands beside. Nothing is written without a path, or of a block that fails.
    """

    def __init__(self, benchmark: str, path: Path | None):
        if path is not None and not path.absolute().parent.is_dir():
            raise SystemExit(f"--out: {path} cannot be written, since there is no folder {path.parent}; make it first.")
        self.rows: list[dict[str, Any]] = []
        self._benchmark, self._path = benchmark, path
        self._copies = [copying()]

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None and self._path is not None:
            self.write(self._path)

    def time(self, name: str, times: Times, **more: Any) -> dict[str, Any]:
        """Add a row of a time. It is returned."""
        self._copies.append(copying())
        copy = Times(self._copies[-2].each + self._copies[-1].each)
        spread = None if times.spread is None else math.hypot(times.spread, copy.spread or 0.0)
        row = {"name": name, "seconds": times.seconds, "spread": spread, "copies": times.seconds / copy.seconds}
        return self.add(row | more)

    def size(self, name: str, *sizes: float, **more: Any) -> dict[str, Any]:
        """Add a row of memory, in bytes, measured once or several times. It is returned."""
        return self.add({"name": name, "bytes": statistics.median(sizes), "spread": spread_of(sizes)} | more)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add a row as it is: another process's, or one that is not to be compared."""
        self.rows.append(row)
        return row

    def write(self, path: Path) -> None:
        copy = statistics.median(x for copies in self._copies for x in copies.each)
        text = {
            "benchmark": self._benchmark,
            "about": about(),
            "took": time.perf_counter() - _STARTED,
            "copy": {"bytes": COPIED, "seconds": copy},
            "rows": self.rows,
        }
        write_text(path, json.dumps(text, indent=1) + "\n")
