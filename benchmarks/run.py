"""Run the benchmarks that end within ten minutes on two cores, one after the other; each writes a file of results.

    python benchmarks/run.py [--only june sums ...] [--out benchmarks/results]

Nothing else should run beside them. `compare.py` says what became slower since.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
#: Seconds after which a benchmark is stopped.
LIMIT = 600.0


class Benchmark(NamedTuple):
    script: str
    arguments: tuple[str, ...] = ()


BENCHMARKS = {
    "brock_hommes": Benchmark("brock_hommes.py"),
    "june": Benchmark("june.py", ("--quick",)),
    "sums": Benchmark("sums.py", ("--quick",)),
    "black_box": Benchmark("black_box.py", ("--quick",)),
    "planner_memory": Benchmark("planner_memory.py", ("--quick",)),
    "memory_of_updates": Benchmark("memory_of_updates.py", ("--quick",)),
    "devices_memory": Benchmark("devices.py", ("memory", "--quick")),
    "devices_overhead": Benchmark("devices.py", ("overhead", "--quick")),
    "devices_largest": Benchmark("devices.py", ("largest", "--quick")),
}
#: What is not run here, and why.
LEFT_OUT = {
    "accelerator.py": "needs an accelerator; on a machine with one, run it by itself",
    "brock_hommes_horizons.py": "not timed: a study of gradients and posteriors",
    "devices.py country": "not timed: predicts times from those of june.py",
    "gradient_free.py": "not timed: a study of losses reached",
}
#: What measures the peak of memory as Linux tells it.
LINUX = ("planner_memory", "sums", "devices_largest")


def took(name: str, folders: tuple[Path, ...]) -> float | None:
    """Seconds that it took before, where results say so."""
    for folder in folders:
        try:
            return float(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["took"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def left(names: list[str], before: dict[str, float | None]) -> str:
    """How long these will take, from how long they took."""
    known = [seconds for name in names if (seconds := before[name]) is not None]
    unknown = len(names) - len(known)
    if not known:
        return "time left unknown"
    return f"about {shown(sum(known))} left" + (f" and {unknown} that were not run before" if unknown else "")


def shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def run(name: str, path: Path) -> str | None:
    """Run it in a process of its own; what went wrong."""
    script, arguments = BENCHMARKS[name]
    path.unlink(missing_ok=True)  # an earlier result is not to be taken for this one
    command = [sys.executable, str(HERE / script), *arguments, "--out", str(path)]
    process = subprocess.Popen(command, start_new_session=True)  # a group, with the processes that it starts
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        return f"stopped: it did not end within {shown(LIMIT)}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        return f"failed with exit code {code}"
    return None if path.exists() else "wrote no results"


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in BENCHMARKS if arguments.only is None or name in arguments.only]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started is stopped too
    if arguments.only is None:
        for script, why in LEFT_OUT.items():
            print(f"left out: {script} ({why})")
    if sys.platform != "linux":
        for name in [name for name in names if name in LINUX]:
            print(f"left out: {name} (asks Linux for the peak of memory)")
            names.remove(name)
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"Other work runs on this machine, or did a minute ago (load {load:.1f}): times may be longer.")
    before = {name: took(name, (arguments.out, RESULTS)) for name in names}
    wrong: dict[str, str] = {}
    begun = time.perf_counter()
    for i, name in enumerate(names):
        print(f"\n[{i + 1} of {len(names)}] {name}; {left(names[i:], before)}", flush=True)
        start = time.perf_counter()
        if (what := run(name, arguments.out / f"{name}.json")) is not None:
            wrong[name] = what
        print(f"{name}: {what or 'done'}, {shown(time.perf_counter() - start)}", flush=True)
    done, spent = len(names) - len(wrong), shown(time.perf_counter() - begun)
    print(f"\n{done} of {len(names)} done in {spent}; results in {arguments.out}")
    for name, what in wrong.items():
        print(f"{name} {what}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
