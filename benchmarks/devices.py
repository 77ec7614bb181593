"""Many devices: what dividing a world costs, what it saves, and where it stops scaling.

    python benchmarks/devices.py memory   [--people 8.6e6]   bytes a device, by the compiler, on 1 to 16 of them
    python benchmarks/devices.py overhead [--people 1e6]     a divided program on one device, over the undivided
    python benchmarks/devices.py largest  [--people 40e6]    a world built and simulated, and the memory it takes
    python benchmarks/devices.py country  [--people 67e6]    predicted step time of a country on 8 to 512 devices

Each writes a table to standard output, and with `--out` JSON; `country` also a figure. With `--quick`, the first three
are of fewer people, the first on 1 and 8 devices alone, and the third is repeated. Devices are virtual ones of the CPU,
so only sizes and one-device times are measured here; times on many are predicted, from the assumptions it prints.
"""

import argparse
import datetime as dt
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ["JAX_NUM_CPU_DEVICES"] = "16"

import jax
import jax.numpy as jnp
import numpy as np
from measuring import Results, Times, once, peak_since

import calibrant as cal
from calibrant import worlds
from calibrant._devices import place
from calibrant.inference._planner import Compiled
from calibrant.models.june import Calendar

DAYS = 15
TANGENTS = 11
QUICK = {"memory": 2e5, "overhead": 1e5, "largest": 2e6}


def june(world: worlds.World, blocks: int) -> cal.models.June:
    """The model that is measured."""
    return cal.models.June(world, Calendar(dt.date(2020, 3, 2), DAYS), blocks=blocks)


def forward(model: Any, params: Any, seed: Any) -> Any:
    """A simulation."""
    return cal.simulate(model, params, seed=seed).outputs["infections"]


def jacobian(model: Any, params: Any, seed: Any) -> Any:
    """Its Jacobian in the parameters with a prior, forward mode, direct effects."""
    free = [name for name, info in type(params).describe().items() if info.prior is not None]

    def run(values):
        mode, horizon = cal.HybridMode(), cal.SlidingHorizon(0)
        named = params.replace(dict(zip(free, values, strict=True)))
        return cal.simulate(model, named, seed=seed, mode=mode, horizon=horizon).outputs["infections"]

    return jax.jacrev(run)(jnp.stack([jnp.asarray(getattr(params, name)) for name in free]))


PROGRAMS = {"simulation": forward, "Jacobian": jacobian}


def memory(results: Results, people: int, counts: tuple[int, ...]) -> None:
    """Bytes a device, as the compiler accounts for them, and the law 1/K plus what is on every device."""
    world = worlds.build_world(people, seed=0)
    firsts: dict[str, int] = {}
    for devices in counts:
        model = june(world, devices)
        with cal.Devices(agents=devices):
            placed = place(model, model.n_agents)
            for name, program in PROGRAMS.items():
                made = Compiled(program, (placed, model.default_params, cal.seeds(0, ())))
                total = made.arguments + made.memory
                first = firsts.setdefault(name, total)
                overhead, cut = total - first / devices, model.activities.venues.cut
                label = f"{people:,} people, {name}, a device of {devices}"
                results.size(label, total, overhead=overhead, cut=cut, padded=model.n_agents / people)
                print(
                    f"{name:10} on {devices:2} devices: {total / 2**20:8,.0f} MiB a device, {first / total:5.2f} times "
                    f"less; over 1/K: {overhead / 2**20:6,.1f} MiB",
                    flush=True,
                )
        del placed, model


def overhead(results: Results, people: int, repeats: int = 9) -> None:
    """Median time of the divided program over the undivided, both on one device, runs taken in turns."""
    world = worlds.build_world(people, seed=0)
    whole, divided = june(world, 1), june(world, 8)
    for name, program in PROGRAMS.items():
        made = {"whole": Compiled(program, (whole, whole.default_params, cal.seeds(0, ())))}
        with cal.Devices():
            for case, model in {"on a mesh of one": whole, "for 8 devices, on a mesh of one": divided}.items():
                made[case] = Compiled(program, (model, model.default_params, cal.seeds(0, ())))
        for compiled in made.values():
            compiled.seconds()
        times: dict[str, list[float]] = {case: [] for case in made}
        for _ in range(repeats):
            for case, compiled in made.items():
                times[case].append(once(compiled))
        for case, seconds in times.items():
            per = float(np.median(seconds)) / people / DAYS * 1e9
            ratio = float(np.median(np.array(seconds) / np.array(times["whole"])))
            label = f"{people:,} people, {name}, {case}"
            results.time(label, Times(tuple(seconds)), ns_an_agent_step=per, of_the_whole=ratio)
            print(f"{name:10} {case:32}: {per:6.1f} ns an agent-step, {ratio:.3f} of the whole", flush=True)


def largest(results: Results, people: int, repeats: int) -> None:
    """How long a world takes to be built, laid out and simulated, and the most memory of this process.

    If it is repeated, what compiles is left out: times of the first world, and what its memory is over the others'.
    """
    spent = [once_largest(people)]
    sizes, label = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024], "the most memory of the process"
    if repeats:
        del spent[0]
        sizes = [peak_since(lambda: spent.append(once_largest(people))) for _ in range(repeats)]
        label = "memory beyond what there was"
    for what in spent[0]:
        results.time(f"{people:,} people, {what}", Times(tuple(each[what] for each in spent)))
    results.size(f"{people:,} people, {label}", *sizes)


def once_largest(people: int, days: int = 50) -> dict[str, float]:
    """Seconds and the most memory of this process so far, after each of building, laying out and simulating a world."""
    spent: dict[str, float] = {}

    def note(what: str, start: float) -> None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        spent[what] = time.perf_counter() - start
        print(f"{what:10}: {spent[what]:6.1f} s, {most:5.1f} GiB at the most so far", flush=True)

    start = time.perf_counter()
    world = worlds.build_world(people, seed=0)
    note("built", start)
    start = time.perf_counter()
    model = cal.models.June(world, Calendar(dt.date(2020, 3, 2), days))
    del world
    note("laid out", start)
    start = time.perf_counter()
    params = model.default_params.replace({"log_seed": -4.0})
    infections = np.asarray(cal.simulate(model, params, seed=1).outputs["infections"])
    note("simulated", start)
    per = spent["simulated"] / people / days * 1e9
    print(
        f"{per:.1f} ns an agent-step; infections on the first and last day: {infections[0]:,.0f}, {infections[-1]:,.0f}"
    )
    return spent


def country_areas(people: int, rng: np.random.Generator) -> worlds.Areas:
    """Towns on a map of 900 x 450 km, sizes by Zipf's law from a capital of 8.6 million, each a round city."""
    sizes = []
    while sum(sizes) < people:
        sizes.append(min(8.6e6 / (len(sizes) + 1), people - sum(sizes)) + 1e4)
    parts = [worlds.synthetic_areas(round(s), rng) for s in sizes]
    place = np.stack([rng.uniform(50.5, 58.5, len(sizes)), rng.uniform(-5.0, 1.5, len(sizes))], axis=1)
    place[0] = 51.5, -0.1
    home = np.array([51.5, -0.1])
    n = [len(p.names) for p in parts]
    shift = np.repeat(place - home, n, axis=0)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    return worlds.Areas(
        names=tuple(f"area {i}" for i in range(sum(n))),
        latitude=joined("latitude") + shift[:, 0],
        longitude=joined("longitude") + shift[:, 1],
        borough=np.repeat(np.arange(len(parts)), n).astype(np.int32),
        borough_names=tuple(f"town {i}" for i in range(len(parts))),
        ages=joined("ages"),
        households=joined("households"),
        jobs=joined("jobs"),
        source="a country of round cities, sizes by Zipf's law",
    )


#: Devices: ns an agent-step of a simulation and of its Jacobian, measured (`june.py`), and gigabytes a second between
#: them, assumed.
DEVICES = {
    "2 CPU cores, 25 Gb/s Ethernet": (20.0, 66.0, 3.125),
    "H100, NVLink": (0.25, 0.85, 450.0),
    "H100, 400 Gb/s": (0.25, 0.85, 50.0),
}
_LATENCY = 20e-6


def country(results: Results, people: int, figure: Path | None) -> None:
    """Divide a synthetic country, count what crosses, and predict.

    A step takes the slowest device's share of people times the time an agent takes, plus two ring all-reduces (the
    copies of venues that are cut; leisure by area), each of 2 (K - 1) / K times its bytes over the link's speed, plus
    2 (K - 1) latencies of 20 microseconds each way round the ring at most, or log2 K of them by a tree: the smaller.
    """
    start = time.perf_counter()
    world = worlds.build_world(people, seed=0, areas=country_areas(people, np.random.default_rng(0)))
    print(
        f"{world.n_people:,} people in {world.n_areas:,} areas, {world.n_activities:,} main activities: "
        f"built in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    rows = []
    for k in (k for k in (1, 8, 16, 32, 64, 128, 256, 512) if k <= world.n_areas):
        balance = worlds.Balance.of(world, k)
        row: dict[str, Any] = {
            "devices": k,
            "largest": int(balance.people.max()),
            "balance": balance.efficiency,
            "cut_venues": balance.cut_venues,
            "cut_members": balance.cut_members,
            "bytes_a_step": balance.bytes_a_step(world.n_areas) if k > 1 else 0,
        }
        for device, (run, derivative, speed) in DEVICES.items():
            for what, ns, columns in (("simulation", run, 1), ("Jacobian", derivative, 1 + TANGENTS)):
                size = balance.bytes_a_step(world.n_areas, columns) if k > 1 else 0
                exchange = 2 * (k - 1) / k * size / (speed * 1e9) + 2 * np.log2(k) * _LATENCY
                seconds = row["largest"] * ns * 1e-9 + exchange
                row[f"{what}, {device}"] = {
                    "ms": 1e3 * seconds,
                    "efficiency": world.n_people * ns * 1e-9 / k / seconds,
                }
        rows.append(row)
        results.add({"name": f"{k} devices"} | row)
        print(
            f"K = {k:3}: largest {row['largest']:,}, balance {row['balance']:.1%}, cut {balance.cut_venues:,} venues, "
            f"{balance.cut_members:.1%} of memberships, {row['bytes_a_step'] / 2**20:.2f} MiB a step;  "
            + "; ".join(
                f"{name}: {x['ms']:.3g} ms ({x['efficiency']:.0%})" for name, x in row.items() if isinstance(x, dict)
            ),
            flush=True,
        )
    if figure is not None:
        _figure(rows, world.n_people, figure)


def _figure(rows: list[dict[str, Any]], people: int, path: Path) -> None:
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = made.subplots(1, 2)
    k = [r["devices"] for r in rows]
    for color, device in zip(("#2563a8", "#c2410c", "#4d7c0f"), DEVICES, strict=True):
        for style, what in (("-", "simulation"), ("--", "Jacobian")):
            x = [r[f"{what}, {device}"] for r in rows]
            label = f"{what}, {device}"
            left.loglog(k, [y["ms"] for y in x], style, color=color, marker=".", label=label)
            right.semilogx(k, [y["efficiency"] for y in x], style, color=color, marker=".")
    left.set(title=f"Predicted time of a step, {people / 1e6:.0f} million people", xlabel="devices", ylabel="ms")
    right.set(title="Share of the time that is not waiting", xlabel="devices", ylim=(0, 1.05))
    right.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    made.legend(loc="outside lower center", ncols=3, fontsize=6, frameon=False, handlelength=3)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(k, [str(i) for i in k])
        axis.minorticks_off()
    made.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "overhead", "largest", "country"))
    parser.add_argument("--people", type=float)
    parser.add_argument("--quick", action="store_true", help="few people, where nothing else is said")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    what, quick = arguments.what, arguments.quick
    full = {"memory": 8.6e6, "overhead": 1e6, "largest": 40e6, "country": 67e6}
    people = round(arguments.people or (full | QUICK if quick else full)[what])
    with Results(f"devices_{what}", arguments.out) as results:
        if what == "memory":
            memory(results, people, (1, 8) if quick else (1, 2, 4, 8, 16))
        elif what == "overhead":
            overhead(results, people)
        elif what == "largest":
            largest(results, people, 5 if quick else 0)
        else:
            country(results, people, arguments.figure)


if __name__ == "__main__":
    main()
