"""Sums over agents: as Calibrant has its programs compiled, and as XLA compiles them otherwise.

    python benchmarks/sums.py [--agents 1000000] [--quick] [--out sums.json]

For each: the time, and the peak of resident memory beyond what the compiler counts, in arrays of one number an agent
and parameter value; each in a process of its own. Then updates of three bundled configurations. Times that are
printed are the shortest. With `--quick`, only as Calibrant has them compiled.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measuring import Results, peak_since, timed

from calibrant import _programs
from calibrant.cli._configured import configured

#: From two values of the parameters: arrays, and what is summed over their last axis.
SUMS: dict[str, tuple[tuple[tuple[int, ...], ...], Any]] = {
    "a product of four": (((2, -1),) * 4, lambda a, b, c, d: a * b * c * d),
    "with an axis of length one": (((2, 1, -1),) * 4, lambda a, b, c, d: a * b * c * d),
    "with a row that values share": (((1, -1), (2, -1)), lambda a, b: a * b),
    "with numbers that four tangents share": (((2, 1, -1), (2, 4, -1)), lambda a, b: a * b),
}
UPDATES = ("brock-hommes", "boarding-school", "june-town")


def a_sum(results: Results, name: str, agents: int) -> dict[str, Any]:
    shapes, fn = SUMS[name]
    arrays = [jnp.full([agents if n < 0 else n for n in shape], 1.0 + i / 10) for i, shape in enumerate(shapes)]
    arrays = jax.block_until_ready(arrays)
    program = _programs.compiled(lambda *x: jnp.sum(fn(*x), axis=-1)).lower(*arrays).compile()
    ctypes.CDLL(None).malloc_trim(0)
    stats = program.compiled.memory_analysis()
    counted = stats.temp_size_in_bytes + stats.output_size_in_bytes
    peak = peak_since(lambda: jax.block_until_ready(program(*arrays)))
    times = timed(lambda: program(*arrays), 20, at_least=0.5)
    uncounted = max(0.0, (peak - counted) / (8 * agents))
    return results.time(f"{agents:,} agents: {name}", times, shortest=times.shortest, arrays=uncounted)


def updates(results: Results, name: str) -> dict[str, Any]:
    size = 5000.0 if name.startswith("june") else None
    settings, directory, _ = configured(name, updates=None, size=size, scale=None, data=None)
    problem, prior, method = settings.build(directory)
    assert hasattr(method, "planned")
    method = method.planned(problem, prior)[0]
    state = method.init(problem, prior, 0)
    times = timed(lambda: method.step(problem, state, 10), 7).over(10)
    return results.time(f"an update of {name}", times, shortest=times.shortest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    agents = arguments.agents
    if arguments.child:
        name, how = arguments.child
        if how == "default":
            _programs._NO_KERNELS.clear()  # then nothing is asked of the compiler
        results = Results("sums", None)
        print(json.dumps(a_sum(results, name, agents) if name in SUMS else updates(results, name)))
        return
    print("| | as XLA by default, ms | as compiled here, ms | arrays by default | here |\n" + "| --- " * 5 + "|")
    with Results("sums", arguments.out) as results:
        for name in (*SUMS, *UPDATES):
            cells = {"default": ("", ""), "here": ("", "")}
            for how in ("here",) if arguments.quick else ("default", "here"):
                command = [sys.executable, __file__, "--agents", str(agents), "--child", name, how]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
                cells[how] = f"{1e3 * row['shortest']:.2f}", f"{row['arrays']:.1f}" if "arrays" in row else ""
                if how == "default":
                    row["name"] += ", as XLA by default"
                results.add(row)
            (default, default_arrays), (here, here_arrays) = cells["default"], cells["here"]
            label = name if name in SUMS else f"an update of {name}"
            print(f"| {label} | {default} | {here} | {default_arrays} | {here_arrays} |", flush=True)


if __name__ == "__main__":
    main()
