"""AD modes: time and memory by parameters, steps and agents, where they cross, and what the planner's choice costs.

SIR with a transmission rate for every area and period (1 to 1,000 of them), 10 to 10,000 steps, 1,000 to a million
agents. Every cell is a gradient of one update, of two parameter values. For each mode, with all of it at once and with
one simulation at a time: seconds, and the compiler's memory. Regret is the time of what `AutoMode` chose over that of
the fastest that fits the budget, both timed here and not by the planner. With `--memory 0.02` the budget binds on the
quick grid: reverse mode does not fit in cells with many steps or agents.

    python studies/modes.py [--tiny | --quick] [--memory 8]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import functools
import itertools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from cells import Cells
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path
from calibrant._programs import compiled as compiled_program
from calibrant.inference._planner import families

VALUES = 2
#: With more agent-steps times parameters than this, forward mode is left out: it would take minutes to hours.
_MOST = 1e9


def problem(parameters: int, steps: int, agents: int) -> tuple[cal.Problem, cal.Prior]:
    """SIR with so many transmission rates."""
    areas = min(parameters, 10)
    periods = max(1, parameters // areas)
    model = cal.models.RegionalSIR(agents, areas=areas, steps=steps, days=max(1, -(-steps // periods)))
    shape = model.default_params.log_factor.shape
    data = {"infected": np.full((steps, areas), 10.0)}
    loss = cal.losses.Streams({"infected": cal.losses.MeanSquaredError(scale=100.0)})
    it = cal.Problem(model, data, loss, params=model.default_params.replace({"initial": agents / 100 + 0.5}))
    return it, cal.Prior.of(it, {"log_factor": dist.Normal(0.0, 0.3).expand(shape)})


def kinds(parameters: int, steps: int) -> list[list[tuple[str, cal.AbstractMode]]]:
    """All that the planner looks at, and so may choose: of a family the next where the one before does not fit."""
    reverse, checkpointed, hybrid = families(parameters, steps)
    root, *more = checkpointed or [("", cal.ReverseMode())]
    checkpointed = [("checkpointed", root[1]), *more] if root[0] else []
    quarter = [x for x in hybrid if x[0].startswith(f"hybrid, {parameters // 4} of")] if parameters > 16 else []
    hybrid = [x for x in hybrid if x not in quarter]
    return [reverse, checkpointed, hybrid, quarter]  # a quarter of the tangents is looked at in any case


def shortest(run: Any, seconds: float) -> float:
    """Of the runs of so many seconds."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def cell(parameters: int, steps: int, agents: int, gib: float) -> dict[str, Any]:
    it, prior = problem(parameters, steps, agents)
    z = 0.1 * jax.random.normal(jax.random.key(0), (VALUES, prior.dim))
    words = cal.seeds(0, (VALUES, 1))

    def compiled(mode: cal.AbstractMode, at_once: int | None) -> Any:
        def total(z: Any, it: Any) -> Any:
            values = jax.vmap(prior.constrain)(z)
            return jnp.sum(cal.expect(it, values, seeds=words, mode=mode, simulations_at_once=at_once).losses)

        return compiled_program(jax.grad(total)).lower(z, it).compile()

    budget = gib * 2**30
    rows: dict[str, Any] = {}
    programs: dict[str, Any] = {}
    for family in kinds(prior.dim, steps):
        for name, mode in family:
            tangents = prior.dim if "hybrid" in name else 1
            if agents * steps * tangents > _MOST:
                continue
            for at_once in (None, 1):
                run = compiled(mode, at_once)
                stats = run.compiled.memory_analysis()
                memory = stats.temp_size_in_bytes + stats.output_size_in_bytes
                key = name if at_once is None else f"{name}, one at a time"
                rows[key] = {"seconds": None, "memory": memory}
                if memory <= budget:
                    rows[key]["seconds"] = shortest(lambda run=run: run(z, it), 1.0)
                    programs[key] = run
                if at_once is None and (rows[key]["seconds"] or 0) > 60:
                    break
            if name in programs:
                break
    best = min((rows[key]["seconds"] for key in programs), default=math.nan)
    close = [key for key in programs if rows[key]["seconds"] < min(2 * best, 5.0)]
    for _ in range(3):  # in turn, since the speed of a machine changes
        for key in close:
            again = shortest(lambda run=programs[key]: run(z, it), 0.5)
            rows[key]["seconds"] = min(rows[key]["seconds"], again)
    start = time.perf_counter()
    _, plan = cal.GVI(simulations=VALUES, evaluation_simulations=2, kl_samples=2, mode=cal.AutoMode(gib)).planned(
        it, prior
    )
    planning = time.perf_counter() - start
    assert plan is not None
    chosen = plan.chosen
    key = next(name for family in kinds(prior.dim, steps) for name, mode in family if mode == chosen.mode)
    key += ", one at a time" if chosen.simulations_at_once == 1 else ""
    best = min((r["seconds"] for r in rows.values() if r["seconds"] is not None), default=math.nan)
    took = rows.get(key, {}).get("seconds") or chosen.seconds
    return {
        "dim": prior.dim,
        "modes": rows,
        "planned": key,
        "planning_seconds": planning,
        "regret": took / best - 1,
    }


def table(results: dict[str, Any]) -> str:
    lines = ["| parameters, steps, agents | fastest | s | reverse | checkpointed | hybrid | planner | regret |"]
    lines.append("| --- " * 8 + "|")
    for key, got in results.items():
        rows = got["modes"]
        timed = {n: r["seconds"] for n, r in rows.items() if r["seconds"] is not None}
        fastest = min(timed, key=lambda n: timed[n])

        def shown(name: str, rows: Any = rows) -> str:
            r = rows.get(name)
            if r is None:
                return "not run"
            seconds = "does not fit" if r["seconds"] is None else f"{r['seconds']:.2g} s"
            return f"{seconds}, {r['memory'] / 2**20:,.0f} MiB"

        cells = [fastest, f"{timed[fastest]:.2g}", *map(shown, ("reverse", "checkpointed", "hybrid"))]
        lines.append(f"| {key} | {' | '.join(cells)} | {got['planned']} | {max(got['regret'], 0):.0%} |")
    regrets = [max(got["regret"], 0) for got in results.values()]
    lines.append(f"\nregret: median {np.median(regrets):.1%}, largest {np.max(regrets):.1%}, {len(regrets)} cells")
    return "\n".join(lines)


def picture(results: dict[str, Any], path: Path) -> None:
    panels = sorted({tuple(int(x) for x in key.split(", ")[1:]) for key in results})
    columns = min(5, len(panels))
    blocks = -(-len(panels) // columns)  # of two rows, time and memory
    figure = Figure(figsize=(2.5 * columns + 1, 4.6 * blocks), layout="constrained")
    axes = figure.subplots(2 * blocks, columns, sharex=True, squeeze=False)
    colours = {"reverse": "#2563a8", "checkpointed": "#0d8a72", "hybrid": "#c2410c"}
    for i, (steps, agents) in enumerate(panels):
        block, column = divmod(i, columns)
        for row, (what, label) in enumerate((("seconds", "seconds a gradient"), ("memory", "bytes"))):
            axis = axes[2 * block + row, column]
            axis.sharey(axes[row, 0])
            for name, colour in colours.items():
                points = sorted(
                    (int(key.split(", ")[0]), got["modes"][name][what])
                    for key, got in results.items()
                    if key.endswith(f", {steps}, {agents}") and got["modes"].get(name, {}).get(what) is not None
                )
                if points:
                    x, y = zip(*points, strict=True)
                    axis.loglog(x, y, "o-", ms=3, lw=1, color=colour, label=name)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(which="both", labelsize=7)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
            if row == 0:
                axis.set_title(f"{steps:,} steps, {agents:,} agents", fontsize=9)
            else:
                axis.set_xlabel("parameters", fontsize=8)
                axis.tick_params(labelbottom=True)
    for axis in axes[-2:, len(panels) - (blocks - 1) * columns :].flat:
        axis.set_axis_off()
    axes[0, 0].legend(fontsize=7, frameon=False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def grid(tiny: bool, quick: bool) -> list[tuple[int, int, int]]:
    if tiny:
        return [(1, 10, 100), (20, 10, 100)]
    if quick:
        return list(itertools.product((1, 10, 100), (10, 100), (1000, 30_000)))
    everything = itertools.product((1, 10, 100, 1000), (10, 100, 1000, 10_000), (1000, 30_000, 1_000_000))
    return [(p, t, n) for p, t, n in everything if t * n <= 1e8 and p <= 10 * t]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="two cells of 100 agents")
    size.add_argument("--quick", action="store_true", help="up to 100 parameters, 100 steps, 30,000 agents")
    parser.add_argument("--memory", type=float, default=8.0, help="budget in GiB")
    parser.add_argument("--out", type=Path, default=Path("studies/out/modes"))
    arguments = parser.parse_args(argv)
    cells = Cells(arguments.out.with_suffix(".json"), {"memory": arguments.memory})
    todo = grid(arguments.tiny, arguments.quick)
    cells.run([(f"{p}, {t}, {n}", functools.partial(cell, p, t, n, arguments.memory)) for p, t, n in todo])
    shown = {key: cells.results[key] for p, t, n in todo if (key := f"{p}, {t}, {n}") in cells.results}
    picture(shown, arguments.out.with_suffix(".png"))
    print(table(shown))


if __name__ == "__main__":
    main()
