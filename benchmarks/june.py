"""JUNE: time and memory of a simulation, its Jacobian, its reverse pass, and one update of variational inference.

    python benchmarks/june.py [--sizes 1e5 1e6 8.6e6] [--days 15] [--out june.json]
    python benchmarks/june.py --quick

Times are medians of repeated runs after a warm-up, in nanoseconds an agent and step; memory is the compiler's own
account of temporaries, arguments and outputs, in bytes an agent; "copies" is the ratio to adding 1 to an array of one
float an agent, measured in the same run. With `--quick`, the smallest size alone, in more runs. In the file that
`--out` names, "copies" is of 100 MB as for every benchmark.
"""

import argparse
import datetime as dt
import functools
import platform
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from measuring import Results, timed

import calibrant as cal
from calibrant.models.june import Calendar, Policy

FIRST = dt.date(2020, 3, 2)


def compiled(function: Any, *arguments: Any) -> tuple[Any, int]:
    """A compiled function and what memory the compiler says it needs, in bytes."""
    arrays, rest = eqx.partition(arguments, eqx.is_array)
    made = jax.jit(lambda arrays: function(*eqx.combine(arrays, rest))).lower(arrays).compile()
    m: Any = made.memory_analysis()
    size = m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return lambda: made(arrays), size


class Runs:
    """What is measured, of one model."""

    def __init__(self, model: cal.models.June, seed: int = 1):
        self.model = model
        self.params = model.default_params
        self.free = [name for name, info in type(self.params).describe().items() if info.prior is not None]
        self.values = jnp.asarray([getattr(self.params, name) for name in self.free])
        self.seed = cal.seeds(seed, ())

    def series(self, model: Any, values: Any, mode: Any, horizon: Any, stream: str = "cumulative_infections") -> Any:
        params = self.params.replace(dict(zip(self.free, values, strict=True)))
        return cal.simulate(model, params, seed=self.seed, mode=mode, horizon=horizon).outputs[stream]

    def forward(self, model: Any, values: Any) -> Any:
        params = self.params.replace(dict(zip(self.free, values, strict=True)))
        return cal.simulate(model, params, seed=self.seed).outputs

    def jacobian(self, horizon: Any) -> Any:
        """All columns at once: one product of the transposed Jacobian still needs the whole of it."""
        mode = cal.HybridMode()
        return lambda model, values: jax.grad(lambda v: jnp.sum(self.series(model, v, mode, horizon)))(values)

    def reverse(self, horizon: Any) -> Any:
        mode = cal.CheckpointedReverseMode()
        return lambda model, values: jax.grad(lambda v: jnp.sum(self.series(model, v, mode, horizon)))(values)

    def update(self, model: Any) -> tuple[Any, int]:
        data = self.forward(model, self.values)["cumulative_infections"]
        loss = cal.losses.Streams({"cumulative_infections": cal.losses.LogMeanSquaredError()})
        problem = cal.Problem(model, {"cumulative_infections": data}, loss)
        method = cal.GVI(mode=cal.HybridMode(), horizon=cal.SlidingHorizon(0), simulations_at_once=1)
        state = method.init(problem, cal.Prior.of(problem), 0)
        return lambda: method.step(problem, state, 1)[1].loss, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+")
    parser.add_argument("--days", type=int, default=15)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--only", nargs="+", help="rows to measure, by a part of their name")
    parser.add_argument("--quick", action="store_true", help="100,000 people and 15 runs, where nothing else is said")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    sizes = arguments.sizes or ([1e5] if arguments.quick else [1e5, 1e6])
    repeats = arguments.repeats or (15 if arguments.quick else 5)
    print(f"JAX {jax.__version__} on {jax.devices()[0]}, Python {platform.python_version()}, {arguments.days} days")
    with Results("june", arguments.out) as results:
        for size in sizes:
            measure(results, round(size), arguments.days, repeats, arguments.only)


def measure(results: Results, people: int, days: int, repeats: int, only: list[str] | None) -> None:
    """Of a world of one size."""
    world = cal.worlds.build_world(people, seed=1)
    n = world.n_people
    everything = [Policy(FIRST, isolation=True), Policy(FIRST, venues=("pub",), factor=0.5)]
    plain = cal.models.June(world, Calendar(FIRST, days))
    full = cal.models.June(world, Calendar(FIRST, days, everything), sampled=True)
    x = jnp.ones(n)
    per_copy = timed(functools.partial(jax.jit(lambda x: x + 1), x), 9).seconds / n * 1e9
    print(f"\n{n:,} people; adding 1 to a float of each takes {per_copy:.2f} ns")
    runs = Runs(plain)
    none, whole = cal.SlidingHorizon(0), cal.FullHorizon()
    rows: dict[str, Any] = {
        "forward, transmission alone": lambda: compiled(runs.forward, plain, runs.values),
        "forward, complete": lambda: compiled(runs.forward, full, runs.values),
        "Jacobian in 11, H = 0": lambda: compiled(runs.jacobian(none), plain, runs.values),
        "Jacobian in 11, full horizon": lambda: compiled(runs.jacobian(whole), plain, runs.values),
        "checkpointed reverse, H = 0": lambda: compiled(runs.reverse(none), plain, runs.values),
        "checkpointed reverse, full": lambda: compiled(runs.reverse(whole), plain, runs.values),
        "one GVI update, 5 simulations": lambda: runs.update(plain),
    }
    forward = None
    for name, make in rows.items():
        if only and not any(part in name for part in only):
            continue
        run, memory = make()
        times = timed(run, repeats)
        seconds = times.seconds
        forward = seconds if forward is None else forward
        each, ratio = seconds / n / days * 1e9, seconds / forward
        label = f"{people:,} people, {days} days: {name}"
        results.time(label, times, ns_an_agent_step=each, forward_runs=ratio, first_call=times.first)
        if memory:
            results.size(f"{label}, memory", memory)
        bytes_each = f"{memory / n:7.0f} B" if memory else "        -"
        print(
            f"{name:32s} {seconds:8.3f} s {each:8.1f} ns an agent-step {bytes_each} an agent "
            f"{ratio:6.2f} forward runs {each / per_copy:6.0f} copies   first call {times.first:5.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
