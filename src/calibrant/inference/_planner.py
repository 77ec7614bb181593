"""Which AD mode, and how many simulations at once: asked of the compiler, and timed.

The compiler says what a program will need before it runs. A gradient of a whole update is compiled in each mode; where
that does not fit, with so many simulations at once as do, memory being linear in their number. Of the modes in which at
least one fits, a gradient is timed and the fastest taken; one that the compiler counts four times the operations of
another is not timed. The better ones are tried with few simulations at once as well, and what comes out close is timed
again in turn, since other work on a machine comes and goes. Modes give the same numbers up to rounding, so a plan
changes time and memory alone.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from calibrant._autodiff import AbstractMode, CheckpointedReverseMode, HybridMode, ReverseMode
from calibrant._processes import least, told_by_first
from calibrant._programs import Program
from calibrant.inference._memory import device_memory

_GIB = 2**30
_NOT_TIMED = 4.0
_NEAR = 1.5
#: A program is run again until so many seconds have passed; so many times where several processes run it together.
_TIMED_FOR, _TOGETHER = 0.3, 3
#: What is within `_NEAR` of the best is timed in more rounds, so many at most and so many seconds in all.
_ROUNDS, _ROUNDS_FOR = 3, 10.0


class AutoMode(eqx.Module):
    """Let a planner choose among `ReverseMode`, `CheckpointedReverseMode` and `HybridMode`, and how many simulations
    run at once.

    It compiles a gradient in each, which takes some seconds to minutes, and runs each for a moment, or once, before the
    first update.

    **Arguments:** `memory`, in GiB, that a gradient may take beyond the model and its data; four fifths of what is
    available by default.
    """

    memory: float | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"AutoMode needs a positive `memory` in GiB, got {self.memory}.")

    @property
    def budget(self) -> int:
        """In bytes."""
        return least(int(0.8 * device_memory())) if self.memory is None else int(self.memory * _GIB)


@dataclasses.dataclass(frozen=True)
class Option:
    """A mode, with as many simulations at once as fit."""

    name: str
    mode: AbstractMode
    #: `None`: all of an update; 0: not even one fits.
    simulations_at_once: int | None
    #: Bytes that a gradient takes, by the compiler; with one simulation at a time where none fits.
    memory: int
    #: Of the gradients of an update, measured; NaN where it was not.
    seconds: float
    #: Where a hybrid passes from forward to reverse mode: at the simulations' "outputs", or at the "loss" of a group.
    cut: str = ""

    @property
    def fits(self) -> bool:
        return self.simulations_at_once != 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was looked at, and what was chosen of it."""

    chosen: Option
    options: tuple[Option, ...]
    #: In bytes.
    budget: int
    #: Simulations at once of an evaluation, which takes no derivative; `None` for as many as of an update.
    evaluation_at_once: int | None = None

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """A table: mode, simulations at once, where a hybrid is cut, memory, seconds of the gradients of an update."""
        return plan_rows(self.describe())

    def describe(self) -> dict[str, Any]:
        """For the manifest of a run."""

        def entry(o: Option) -> dict[str, Any]:
            seconds = o.seconds if math.isfinite(o.seconds) else None
            at_once = o.simulations_at_once
            return {
                "mode": o.name,
                "simulations_at_once": at_once,
                "cut": o.cut,
                "memory": o.memory,
                "seconds": seconds,
            }

        return {
            "chosen": self.chosen.name,
            "mode": {"name": type(self.chosen.mode).__name__, **dataclasses.asdict(self.chosen.mode)},
            "simulations_at_once": self.chosen.simulations_at_once,
            "budget": self.budget,
            "evaluation_at_once": self.evaluation_at_once,
            "options": [entry(o) for o in self.options],
        }


def planned_mode(plan: dict[str, Any]) -> AbstractMode:
    """The mode that was chosen, from what `Plan.describe` made of it."""
    arguments = dict(plan["mode"])
    kinds = {kind.__name__: kind for kind in (ReverseMode, CheckpointedReverseMode, HybridMode)}
    return kinds[arguments.pop("name")](**arguments)


#: Heads of the columns of `Plan.rows`.
PLAN_COLUMNS = ("mode", "simulations at once", "cut at", "memory", "seconds an update")


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The table of a plan, from what `Plan.describe` made of it."""

    def row(o: dict[str, Any]) -> tuple[str, str, str, str, str]:
        at_once = {None: "all", 0: "does not fit"}.get(o["simulations_at_once"], str(o["simulations_at_once"]))
        timed = "not timed" if o["seconds"] is None else f"{o['seconds']:.3g}"
        chosen = " (chosen)" if o["mode"] == plan["chosen"] else ""
        return o["mode"] + chosen, at_once, o.get("cut", ""), f"{o['memory'] / 2**20:,.0f} MiB", timed

    return [row(o) for o in plan["options"]]


#: A program for a mode and `simulations_at_once`, compiled.
ProgramFor = Callable[[AbstractMode, int | None], "Compiled"]


def families(dim: int, steps: int) -> list[list[tuple[str, AbstractMode]]]:
    """Modes to look at; of a family the next only where the one before does not fit as a whole."""
    root = max(1, math.isqrt(steps))
    chunks = [c for c in dict.fromkeys((dim // 4, 1)) if 1 <= c < dim]
    hybrid: list[tuple[str, AbstractMode]] = [("hybrid", HybridMode())]
    hybrid += [(f"hybrid, {c} of {dim} tangents at a time", HybridMode(c)) for c in chunks]
    segments = [s for s in (root, 4 * root) if 1 < s <= steps]
    checkpointed: list[tuple[str, AbstractMode]] = [
        (f"checkpointed, {s} segments", CheckpointedReverseMode(s)) for s in segments
    ]
    return [[("reverse", ReverseMode())], checkpointed, hybrid]


def plan(
    program: ProgramFor,
    *,
    dim: int,
    steps: int,
    simulations: int,
    row: int,
    budget: int,
    derivative: bool,
    separable: bool = True,
) -> Plan:
    """Compile, time, and choose.

    **Arguments:** `program`; `dim`, numbers that are differentiated; `simulations` of an update, of which each `row`
    belong together; `budget`, in bytes; `derivative`, whether `program` takes any; `separable`, whether rows are
    independent of each other, so that each group's is contracted to gradients of its losses as soon as it has run.

    **Raises:** `ValueError` where not one simulation fits.
    """
    look_at = families(dim, steps) if derivative else [[("no derivative", ReverseMode())]]
    options: list[Option] = []
    programs: dict[str, Compiled] = {}
    best = (math.inf, math.inf)  # seconds, operations
    for family in look_at:
        for name, mode in family:
            at_once, compiled = fitting(lambda n, mode=mode: program(mode, n), simulations, row, budget)
            seconds = math.nan
            if at_once != 0:
                groups = 1 if at_once is None else -(-simulations // at_once)
                chunk = mode.chunk if isinstance(mode, HybridMode) and mode.chunk else dim
                work = compiled.operations * groups * -(-dim // chunk)
                if not work > _NOT_TIMED * best[1]:
                    seconds = compiled.seconds()
                    if seconds < best[0]:
                        best = (seconds, work)
            options.append(Option(name, mode, at_once, compiled.memory, seconds))
            programs[name] = compiled
            if at_once is None:
                break
    for option, compiled in _in_groups(program, options, simulations, row, best[0]):
        options.append(option)
        programs[option.name] = compiled
    options = [dataclasses.replace(o, cut=_cut(o, row, simulations, separable)) for o in _again(options, programs)]
    timed = [o for o in options if o.fits and math.isfinite(o.seconds)]
    if not timed:
        least = min(options, key=lambda o: o.memory)
        raise ValueError(
            f"A gradient of one simulation needs {least.memory / _GIB:.2g} GiB ({least.name}), and "
            f"{budget / _GIB:.2g} GiB are allowed; allow more `memory`, or take fewer agents or steps."
        )
    return Plan(min(timed, key=lambda o: o.seconds), tuple(options), budget)


def _cut(o: Option, row: int, simulations: int, separable: bool) -> str:
    """As `calibrant.expect` cuts it."""
    if not isinstance(o.mode, HybridMode) or not o.fits:
        return ""
    grouped = o.simulations_at_once is not None and row <= o.simulations_at_once < simulations
    return "loss" if grouped and separable else "outputs"


def _in_groups(
    program: ProgramFor, options: list[Option], simulations: int, row: int, best: float
) -> list[tuple[Option, "Compiled"]]:
    """The better modes once more, a row of simulations at a time: often faster on a CPU, whose caches are small."""
    if simulations <= row:
        return []
    out = []
    for o in options:
        if o.simulations_at_once is None and o.seconds < _NEAR * best:
            compiled = program(o.mode, row)
            name = f"{o.name}, {row} simulation{'s' * (row > 1)} at a time"
            out.append((Option(name, o.mode, row, compiled.memory, compiled.seconds()), compiled))
    return out


def _again(options: list[Option], programs: dict[str, "Compiled"]) -> list[Option]:
    """With the times of the best of several rounds where they are close."""
    seconds = {o.name: o.seconds for o in options if math.isfinite(o.seconds)}
    best = min(seconds.values(), default=math.inf)
    close = [name for name in seconds if seconds[name] < _NEAR * best]
    if len(close) > 1:
        a_round = sum(seconds[name] for name in close)
        for _ in range(min(_ROUNDS, int(_ROUNDS_FOR / a_round))):
            for name in close:
                seconds[name] = min(seconds[name], programs[name].seconds())
    return [dataclasses.replace(o, seconds=seconds.get(o.name, o.seconds)) for o in options]


class Compiled:
    """A compiled program: what it needs, and how long it takes."""

    def __init__(self, fn: Callable, arguments: tuple):
        self._arguments = arguments
        self._run = Program(fn).lower(*arguments).compile()
        compiled: Any = self._run.compiled
        stats = compiled.memory_analysis()
        #: Bytes of the arguments, and beyond them; on a mesh, of one device.
        self.arguments = int(stats.argument_size_in_bytes)
        counted = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        self.memory = int(counted)
        cost = compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        #: The body of a loop counts once.
        self.operations = float((cost or {}).get("flops", math.nan))

    def __call__(self) -> None:
        """Run it, and wait."""
        jax.block_until_ready(self._run(*self._arguments))

    def seconds(self) -> float:
        """The shortest of a few runs; infinite where memory does not suffice after all."""
        times: list[float] = []
        alone = jax.process_count() == 1  # several processes must run it equally often
        try:
            while sum(times) < _TIMED_FOR if alone else len(times) < _TOGETHER:
                start = time.perf_counter()
                self()
                times.append(time.perf_counter() - start)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            times = [math.inf]
        return told_by_first(min(times))


def fitting(program: Callable[[int | None], Any], simulations: int, row: int, budget: int) -> tuple[int | None, Any]:
    """How many of so many simulations may run at once (`None`: all; 0: one is too many), and that program, compiled.

    From the memory of all and of one, between which it is linear; where a group holds more than a row, whole rows.
    """
    whole = program(None)
    if whole.memory <= budget:
        return None, whole
    if simulations == 1:
        return 0, whole
    one = program(1)
    if one.memory > budget:
        return 0, one
    each = max((whole.memory - one.memory) / (simulations - 1), 1.0)
    size = _whole_rows(int(1 + (budget - one.memory) / each), simulations, row)
    while size > 1:
        found = program(size)
        if found.memory <= budget:
            return size, found
        size = _whole_rows(min(size - 1, int(size * budget / found.memory)), simulations, row)
    return 1, one


def _whole_rows(size: int, simulations: int, row: int) -> int:
    size = min(size, simulations - 1)
    return size // row * row if size >= row else size
