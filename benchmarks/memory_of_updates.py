"""Peak memory of a calibration of 10,000 updates, by update: it is flat.

    python benchmarks/memory_of_updates.py [--updates 10000] [--quick] [--out memory_of_updates.json]

With `--quick`, of 1,000.
"""

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

from measuring import Results

import calibrant as cal


class Peaks(cal.AbstractProgress):
    """Notes the peak of the resident memory as updates are made."""

    def __init__(self) -> None:
        self.update, self.peaks = 0, [(0, 0.0)]

    def __enter__(self) -> "Peaks":
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def advance(self, updates: int, message: str) -> None:
        del message
        self.update += updates
        self.peaks.append((self.update, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    def note(self, what: Any) -> None:
        del what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--quick", action="store_true", help="1,000 updates, where nothing else is said")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    updates = arguments.updates or (1000 if arguments.quick else 10_000)
    with Results("memory_of_updates", arguments.out) as results:
        measure(results, updates)


def measure(results: Results, updates: int) -> None:
    model = cal.models.SIR.small_world(1000)
    data = {"infected": cal.simulate(model, model.default_params, seed=1, steps=30).outputs["infected"]}
    loss = cal.losses.Streams({"infected": cal.losses.LogMeanSquaredError()})
    problem = cal.Problem(model, data, loss, steps=30)
    method = cal.GVI(max_updates=updates, evaluate_every=updates // 20, weight=0.01)
    peaks = Peaks()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = cal.Checkpoints(folder, every=1.0)
        cal.calibrate(problem, method=method, progress=peaks, check_gradients=False, checkpoints=checkpoints)
    print("| update | peak MiB |\n| --- | --- |")
    for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        update, peak = next(x for x in peaks.peaks if x[0] >= share * updates)
        print(f"| {update:,} | {peak:,.0f} |")
        if share in (0.1, 1.0):
            results.size(f"peak after {update:,} updates of {updates:,}", peak * 2**20)


if __name__ == "__main__":
    main()
