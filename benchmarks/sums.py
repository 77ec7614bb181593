"""Sums over agents: as Calibrant has its programs compiled, and as XLA compiles them otherwise.

    python benchmarks/sums.py [--agents 1000000] [--out sums.json]

For each: the time, and the peak of resident memory beyond what the compiler counts, in arrays of one number an agent
and parameter value; each in a process of its own. Then updates of three bundled configurations.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from planner_memory import peak_since

from calibrant import _programs
from calibrant._files import write_text
from calibrant.cli._configured import configured

#: From two values of the parameters: arrays, and what is summed over their last axis.
SUMS: dict[str, tuple[tuple[tuple[int, ...], ...], Any]] = {
    "a product of four": (((2, -1),) * 4, lambda a, b, c, d: a * b * c * d),
    "with an axis of length one": (((2, 1, -1),) * 4, lambda a, b, c, d: a * b * c * d),
    "with a row that values share": (((1, -1), (2, -1)), lambda a, b: a * b),
    "with numbers that four tangents share": (((2, 1, -1), (2, 4, -1)), lambda a, b: a * b),
}
UPDATES = ("brock-hommes", "boarding-school", "june-town")


def a_sum(name: str, agents: int) -> dict[str, float]:
    shapes, fn = SUMS[name]
    arrays = [jnp.full([agents if n < 0 else n for n in shape], 1.0 + i / 10) for i, shape in enumerate(shapes)]
    arrays = jax.block_until_ready(arrays)
    program = _programs.compiled(lambda *x: jnp.sum(fn(*x), axis=-1)).lower(*arrays).compile()
    ctypes.CDLL(None).malloc_trim(0)
    stats = program.compiled.memory_analysis()
    counted = stats.temp_size_in_bytes + stats.output_size_in_bytes
    peak = peak_since(lambda: jax.block_until_ready(program(*arrays)))
    ms = 1e3 * shortest(lambda: jax.block_until_ready(program(*arrays)), 20)
    return {"ms": ms, "arrays": max(0.0, (peak - counted) / (8 * agents))}


def updates(name: str) -> dict[str, float]:
    size = 5000.0 if name.startswith("june") else None
    settings, directory, _ = configured(name, updates=None, size=size, scale=None, data=None)
    problem, prior, method = settings.build(directory)
    assert hasattr(method, "planned")
    method = method.planned(problem, prior)[0]
    state = method.init(problem, prior, 0)
    jax.block_until_ready(method.step(problem, state, 10))
    return {"ms": 1e2 * shortest(lambda: jax.block_until_ready(method.step(problem, state, 10)), 7)}


def shortest(run: Any, times: int) -> float:
    each = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        each.append(time.perf_counter() - start)
    return min(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, how = arguments.child
        if how == "default":
            _programs._NO_KERNELS.clear()  # then nothing is asked of the compiler
        print(json.dumps(a_sum(name, arguments.agents) if name in SUMS else updates(name)))
        return
    results: dict[str, Any] = {}
    print("| | as XLA by default, ms | as compiled here, ms | arrays by default | here |\n" + "| --- " * 5 + "|")
    for name in (*SUMS, *UPDATES):
        both = []
        for how in ("default", "here"):
            command = [sys.executable, __file__, "--agents", str(arguments.agents), "--child", name, how]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            both.append(json.loads(done.stdout.splitlines()[-1]))
        results[name] = dict(zip(("default", "here"), both, strict=True))
        arrays = [f"{x['arrays']:.1f}" if "arrays" in x else "" for x in both]
        label = name if name in SUMS else f"an update of {name}"
        print(f"| {label} | {both[0]['ms']:.2f} | {both[1]['ms']:.2f} | {arrays[0]} | {arrays[1]} |", flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
