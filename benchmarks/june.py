"""JUNE: time and memory of a simulation, its Jacobian, its reverse pass, and one update of variational inference.

    python benchmarks/june.py [--sizes 1e5 1e6 8.6e6] [--days 15] [--out docs/june_speed.json]

Times are medians of repeated runs after a warm-up, in nanoseconds an agent and step; memory is the compiler's own
account of temporaries, arguments and outputs, in bytes an agent; "copies" is the ratio to adding 1 to an array of one
float an agent, measured in the same run.
"""

import argparse
import datetime as dt
import functools
import json
import platform
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import calibrant as cal
from calibrant.models.june import Calendar, Policy

FIRST = dt.date(2020, 3, 2)


def timed(run: Any, repeats: int) -> tuple[float, float]:
    """Median and first time in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times)), first


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
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6])
    parser.add_argument("--days", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="rows to measure, by a part of their name")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0]}, Python {platform.python_version()}, {arguments.days} days")
    results = []
    for size in arguments.sizes:
        world = cal.worlds.build_world(round(size), seed=1)
        n = world.n_people
        everything = [Policy(FIRST, isolation=True), Policy(FIRST, venues=("pub",), factor=0.5)]
        plain = cal.models.June(world, Calendar(FIRST, arguments.days))
        full = cal.models.June(world, Calendar(FIRST, arguments.days, everything), sampled=True)
        x = jnp.ones(n)
        per_copy = timed(functools.partial(jax.jit(lambda x: x + 1), x), 9)[0] / n * 1e9
        print(f"\n{n:,} people; adding 1 to a float of each takes {per_copy:.2f} ns")
        runs = Runs(plain)
        rows: dict[str, Any] = {
            "forward, transmission alone": lambda r=runs, m=plain: compiled(r.forward, m, r.values),
            "forward, complete": lambda r=runs, m=full: compiled(r.forward, m, r.values),
            "Jacobian in 11, H = 0": lambda r=runs, m=plain: compiled(r.jacobian(cal.SlidingHorizon(0)), m, r.values),
            "Jacobian in 11, full horizon": lambda r=runs, m=plain: compiled(
                r.jacobian(cal.FullHorizon()), m, r.values
            ),
            "checkpointed reverse, H = 0": lambda r=runs, m=plain: compiled(
                r.reverse(cal.SlidingHorizon(0)), m, r.values
            ),
            "checkpointed reverse, full": lambda r=runs, m=plain: compiled(r.reverse(cal.FullHorizon()), m, r.values),
            "one GVI update, 5 simulations": lambda r=runs, m=plain: r.update(m),
        }
        forward = None
        for name, make in rows.items():
            if arguments.only and not any(part in name for part in arguments.only):
                continue
            run, memory = make()
            seconds, first = timed(run, arguments.repeats)
            forward = seconds if forward is None else forward
            each = seconds / n / arguments.days * 1e9
            row = {
                "people": n,
                "days": arguments.days,
                "what": name,
                "seconds": seconds,
                "ns": each,
                "bytes": memory / n,
                "forward_runs": seconds / forward,
                "copies": each / per_copy,
            }
            results.append(row)
            bytes_each = f"{row['bytes']:7.0f} B" if memory else "        -"
            print(
                f"{name:32s} {seconds:8.3f} s {each:8.1f} ns an agent-step {bytes_each} an agent "
                f"{row['forward_runs']:6.2f} forward runs {row['copies']:6.0f} copies   first call {first:5.1f} s",
                flush=True,
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
