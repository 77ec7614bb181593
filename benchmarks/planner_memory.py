"""The planner's memory: what the compiler predicts of a gradient, against the peak of resident memory while it runs.

    python benchmarks/planner_memory.py [--only sir june] [--out planner_memory.json]
    python benchmarks/planner_memory.py --quick

Every pair of model and mode runs in a process of its own: built, compiled, the peak reset (Linux), run twice. Sizes are
such that 100 MB and more are needed. With `--quick`, two models and two modes.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from measuring import Results, peak_since

import calibrant as cal
from calibrant._randomness import seeds
from calibrant.estimators import FiniteDifferences
from calibrant.inference._gvi import _gradients_for_plan
from calibrant.inference._planner import Compiled
from calibrant.models.june import Calendar

MODES: dict[str, Any] = {
    "reverse": cal.ReverseMode(),
    "reverse, one at a time": cal.ReverseMode(),
    "checkpointed": cal.CheckpointedReverseMode(),
    "hybrid": cal.HybridMode(),
    "hybrid, 1 tangent at a time": cal.HybridMode(1),
    "no derivative": cal.ReverseMode(),
}
MODELS = ("sir", "regional-sir", "boarding-school", "brock-hommes", "market", "june", "random-walk", "in-bed")


def problem(name: str, share: float = 1.0) -> tuple[cal.Problem, cal.Prior]:
    """Large enough to be seen, or with a share of its agents."""

    def n(agents: int) -> int:
        return round(share * agents)

    square = cal.losses.MeanSquaredError(scale=100.0)
    priors: dict[str, Any] = {}
    if name == "sir":
        model, steps, data = cal.models.SIR.small_world(n(400_000)), 40, "infected"
    elif name == "regional-sir":
        model, steps, data = cal.models.RegionalSIR(n(200_000), areas=4, steps=28), 28, "infected"
        priors = {"log_factor": dist.Normal(0.0, 0.3).expand((4, 4))}
    elif name == "boarding-school":
        model, steps, data = cal.models.BoardingSchoolSIR(n(300_000)), 14, None
    elif name == "brock-hommes":
        model, steps, data = cal.models.BrockHommes(n(3_000_000)), 97, None
    elif name == "market":
        model, steps, data = cal.models.ThresholdMarket(n(1_000_000)), 50, None
    elif name == "random-walk":
        model, steps, data = cal.models.RandomWalk(n(300_000)), 50, None
    elif name == "in-bed":
        model, steps, data = cal.models.BoardingSchoolSIBR(n(300_000)), 14, None
    else:
        world = cal.worlds.build_world(n(300_000), seed=1)
        model, steps, data = cal.models.June(world, Calendar(dt.date(2020, 3, 1), 30)), 30, "cumulative_infections"
    outputs = jax.eval_shape(lambda: cal.simulate(model, model.default_params, seed=0, steps=steps).outputs)
    blank = jax.tree.map(lambda x: np.ones(x.shape), outputs)
    if isinstance(blank, dict):
        name = data or next(iter(blank))
        it = cal.Problem(model, {name: blank[name]}, cal.losses.Streams({name: square}), steps=steps)
    else:
        it = cal.Problem(model, blank, square, steps=steps)
    return it, cal.Prior.of(it, priors)


def measure(name: str, mode: str) -> dict[str, Any]:
    compiled_of(name, mode, 0.01).seconds()  # what a process takes once, for threads and libraries, is there already
    compiled, dim = compiled_of(name, mode), problem(name, 0.01)[1].dim
    return {"predicted": compiled.memory, "measured": peak_since(compiled.seconds), "dim": dim}


def compiled_of(name: str, mode: str, share: float = 1.0) -> Compiled:
    it, prior = problem(name, share)
    at_once = 1 if mode in ("reverse, one at a time", "no derivative") else None
    estimator = FiniteDifferences() if mode == "no derivative" else cal.estimators.Pathwise()
    values = 1 if mode == "no derivative" else 2
    method = cal.GVI(simulations=values, mode=MODES[mode], simulations_at_once=at_once)
    z = jax.random.normal(jax.random.key(0), (values, prior.dim))
    return Compiled(_gradients_for_plan, (estimator, method, it, prior, z, seeds(0, (values, 1))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS)
    parser.add_argument("--modes", nargs="+", choices=list(MODES))
    parser.add_argument("--quick", action="store_true", help="a part of models and modes, where nothing else is said")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    models = arguments.only or (("market", "june") if arguments.quick else MODELS)
    modes = arguments.modes or (("reverse", "hybrid") if arguments.quick else MODES)
    with Results("planner_memory", arguments.out) as rows:
        compare(rows, list(models), list(modes))


def compare(rows: Results, models: list[str], modes: list[str]) -> None:
    """What is predicted with what is measured."""
    results: dict[str, Any] = {}
    print("| model | mode | parameters | predicted, MB | measured, MB | off by |\n" + "| --- " * 6 + "|")
    for name in models:
        for mode in modes:
            command = [sys.executable, __file__, "--child", name, mode]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {name} | {mode} | | failed: {done.stderr.strip().splitlines()[-1]} | | |", flush=True)
                continue
            got = json.loads(done.stdout.splitlines()[-1])
            results[f"{name}, {mode}"] = got
            rows.size(f"{name}, {mode}: predicted", got["predicted"], dim=got["dim"])
            rows.size(f"{name}, {mode}: measured", got["measured"], dim=got["dim"])
            off = got["predicted"] / max(got["measured"], 1) - 1
            row = [name, mode, got["dim"], f"{got['predicted'] / 1e6:,.0f}", f"{got['measured'] / 1e6:,.0f}"]
            print(f"| {' | '.join(map(str, row))} | {off:+.0%} |", flush=True)
    large = [x for x in results.values() if x["measured"] > 1e8]
    off = [abs(x["predicted"] / x["measured"] - 1) for x in large]
    print(f"\nabove 100 MB: {len(large)} of {len(results)}, off by {max(off, default=0):.0%} at most")


if __name__ == "__main__":
    main()
