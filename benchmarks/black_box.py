"""Runs of a black box side by side: how much faster are several workers than one?

A batch of runs of about 0.1 s each is made with one worker and with more. Two simulators sleep, which shows what
handing out costs; one counts, which shows what the cores of this machine give beside whatever else they do.

    python benchmarks/black_box.py [--workers 2] [--runs 40] [--rounds 3]
"""

import argparse
import os
import subprocess
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

import calibrant as cal
from calibrant.black_box import Command, Csv, Joblib

SECONDS = 0.1


def sleeping(params: dict[str, Any], seed: int) -> np.ndarray:
    del seed
    time.sleep(SECONDS)
    return np.full(3, params["level"])


def counting(params: dict[str, Any], seed: int) -> np.ndarray:
    """So much work, not so many seconds: a wall clock would count the time that others take."""
    x = seed
    for _ in range(int(params["loops"])):
        x = (1103515245 * x + 12345) % 2**31
    return np.full(3, params["level"] + x % 2)


def loops_a_second() -> float:
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        counting({"loops": 200_000, "level": 0.0}, 1)
        best = max(best, 200_000 / (time.perf_counter() - start))
    return best


def ceiling(loops: float, workers: int) -> float:
    """How much faster plain processes count side by side than one after the other: what the cores can give."""
    work = f"for _ in range({int(20 * loops)}): x = (1103515245 * x + 12345) % 2**31"
    code = f"import time; t = time.perf_counter(); x = 1\n{work}\nprint(time.perf_counter() - t)"

    def side_by_side(count: int) -> float:
        made = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(count)]
        return max(float(p.communicate()[0]) for p in made)

    return float(np.median([workers * side_by_side(1) / side_by_side(workers) for _ in range(3)]))


def timed(run: Any, loops: float, workers: int, runs: int) -> float:
    """Seconds of a batch, without compilation and the start of workers."""
    parameters = {"level": 1.0, "loops": loops}
    model = cal.BlackBox(run, parameters=parameters, outputs=(3,), executor=Joblib(workers))
    problem = cal.Problem(model, np.zeros(3), cal.losses.MeanSquaredError())
    values = {"level": jnp.linspace(0, 1, runs)}
    seconds = []
    for stream in range(2):
        start = time.perf_counter()
        cal.expect(problem, values, seeds=cal.seeds(0, (runs, 1), stream=stream)).losses.block_until_ready()
        seconds.append(time.perf_counter() - start)
    assert model.n_failed == 0, model.why_failed
    return seconds[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3, help="one worker and many in turn, so many times")
    arguments = parser.parse_args()
    workers, runs = arguments.workers, arguments.runs
    loops = SECONDS * loops_a_second()
    program = Command(["sh", "-c", f"sleep {SECONDS}; printf 'x\\n{{level}}\\n1\\n1\\n'"], Csv())
    busy = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(f"{runs} runs of {SECONDS} s, {workers} workers, {os.cpu_count()} cores, {busy}")
    print(
        "| simulator | one worker, s | workers, s | times faster | overhead a run, ms; or the ceiling |\n"
        + "| --- " * 5
        + "|"
    )
    for name, run in {"Python, sleeps": sleeping, "Python, counts": counting, "program, sleeps": program}.items():
        pairs = [[timed(run, loops, n, runs) for n in (1, workers)] for _ in range(arguments.rounds)]
        one, many = min(pairs, key=lambda p: p[1])
        ideal = SECONDS * -(-runs // workers)
        overhead = f"{1e3 * (many - ideal) / -(-runs // workers):.1f}" if "sleeps" in name else ""
        speedup = np.median([a / b for a, b in pairs])
        if run is counting:
            overhead = f"plain processes: {ceiling(loops, workers):.2f} times faster"
        print(f"| {name} | {one:.2f} | {many:.2f} | {speedup:.2f} | {overhead} |", flush=True)


if __name__ == "__main__":
    main()
