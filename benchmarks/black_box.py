"""Runs of a black box side by side: how much faster are several workers than one?

A batch of runs of about 0.1 s each is made with one worker and with more. Two simulators sleep, which shows what
handing out costs; one counts, which shows what the cores of this machine give beside whatever else they do.

    python benchmarks/black_box.py [--workers 2] [--runs 40] [--rounds 3] [--out black_box.json]
    python benchmarks/black_box.py --quick

The file holds what handing out a run costs, beyond the tenth of a second that it sleeps. With `--quick`, fewer runs,
which all sleep.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from measuring import Results, Times

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


def batch(run: Any, loops: float, workers: int, runs: int) -> float:
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
    parser.add_argument("--runs", type=int)
    parser.add_argument("--rounds", type=int, help="one worker and many in turn, so many times")
    parser.add_argument(
        "--quick", action="store_true", help="5 rounds of 10 runs that sleep, where nothing else is said"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = arguments.runs or (10 if arguments.quick else 40)
    rounds = arguments.rounds or (5 if arguments.quick else 3)
    with Results("black_box", arguments.out) as results:
        measure(results, arguments.workers, runs, rounds, arguments.quick)


def measure(results: Results, workers: int, runs: int, rounds: int, quick: bool) -> None:
    loops = SECONDS * loops_a_second()
    program = Command(["sh", "-c", f"sleep {SECONDS}; printf 'x\\n{{level}}\\n1\\n1\\n'"], Csv())
    busy = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(f"{runs} runs of {SECONDS} s, {workers} workers, {os.cpu_count()} cores, {busy}")
    print(
        "| simulator | one worker, s | workers, s | times faster | overhead a run, ms; or the ceiling |\n"
        + "| --- " * 5
        + "|"
    )
    simulators = {"Python, sleeps": sleeping, "Python, counts": counting, "program, sleeps": program}
    for name, run in simulators.items():
        if quick and run is counting:
            continue
        pairs = [[batch(run, loops, n, runs) for n in (1, workers)] for _ in range(rounds)]
        one, many = min(pairs, key=lambda p: p[1])
        overhead = ""
        if run is counting:
            overhead = f"plain processes: {ceiling(loops, workers):.2f} times faster"
        else:
            for n, seconds in zip((1, workers), zip(*pairs, strict=True), strict=True):
                in_turn = -(-runs // n)
                times = Times(tuple(x / in_turn - SECONDS for x in seconds))
                results.time(f"{name}: handing out a run, {n} worker{'s' if n > 1 else ''}", times)
            in_turn = -(-runs // workers)
            overhead = f"{1e3 * (many / in_turn - SECONDS):.1f}"
        speedup = np.median([a / b for a, b in pairs])
        print(f"| {name} | {one:.2f} | {many:.2f} | {speedup:.2f} | {overhead} |", flush=True)


if __name__ == "__main__":
    main()
