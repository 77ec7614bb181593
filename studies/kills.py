"""A calibration that is killed again and again, and ends with the bits of one that never was.

A process calibrates a random walk and writes a checkpoint after every piece of updates. It is killed (SIGKILL) at
random moments, in the middle of writes among them, and started again, until it ends. Its posterior and records are
then compared, to the bit, with those of a process that nobody killed.

    python studies/kills.py [--kills 20] [--updates 12000]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

import calibrant as cal


def run(folder: Path, updates: int) -> None:
    """The process that is killed: calibrates, with checkpoints, and writes what it found."""
    model = cal.models.RandomWalk(20)
    data = cal.simulate(model, model.default_params, seed=1, steps=20).outputs
    problem = cal.Problem(model, data, cal.losses.MeanSquaredError(), steps=20)
    method = cal.GVI(max_updates=updates, evaluate_every=100, evaluation_simulations=20, kl_samples=50)
    checkpoints = cal.Checkpoints(folder / "checkpoints", every=0.0)
    result = cal.calibrate(problem, method=method, seed=5, checkpoints=checkpoints, progress=False)
    leaves = jax.tree.leaves(eqx.filter(result.posterior, eqx.is_array))
    arrays: dict[str, Any] = {f"posterior: {i}": np.asarray(x) for i, x in enumerate(leaves)}
    arrays |= {f"updates: {name}": x for name, x in result.updates.items()}
    arrays |= {"history": np.array([list(row.values()) for row in result.history])}
    np.savez(folder / "part.npz", **arrays)
    os.replace(folder / "part.npz", folder / "result.npz")


def start(folder: Path, updates: int) -> subprocess.Popen:
    # Programs are compiled once and read by the others, so that most moments are in the run and not before it.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    arguments = [sys.executable, __file__, "--child", str(folder), "--updates", str(updates)]
    return subprocess.Popen(arguments, env=environment)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--updates", type=int, default=12_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child is not None:
        run(arguments.child, arguments.updates)
        return
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        killed.mkdir()
        began = time.perf_counter()
        if start(whole, arguments.updates).wait() != 0:
            raise SystemExit("The run that nobody killed did not end.")
        print(f"a run of {arguments.updates} updates: {time.perf_counter() - began:.0f} s", flush=True)
        kills, while_writing, reached = 0, 0, 0
        while kills < arguments.kills:
            process = start(killed, arguments.updates)
            before = _newest(killed)
            while process.poll() is None and _newest(killed) == before:  # until it goes on
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 3.0))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            while_writing += bool(list((killed / "checkpoints").glob(".*.part")))
            reached = _newest(killed)
            print(f"kill {kills} of {arguments.kills}: at update {reached}", flush=True)
        if start(killed, arguments.updates).wait() != 0:
            raise SystemExit("The run that was killed did not end.")
        with np.load(whole / "result.npz") as one, np.load(killed / "result.npz") as two:
            same = set(one) == set(two) and all(np.array_equal(one[k], two[k], equal_nan=True) for k in one)
        report = {"kills": kills, "while writing": while_writing, "last at update": reached, "same bits": same}
        print(json.dumps(report))
        if not same:
            raise SystemExit("The bits differ.")


def _newest(folder: Path) -> int:
    files = list((folder / "checkpoints").glob("[0-9]*.h5"))
    return max((int(path.stem) for path in files), default=-1)


if __name__ == "__main__":
    main()
