"""An accelerator against the CPU of the same machine: bundled models give the same, and how long it takes.

    python benchmarks/accelerator.py [--models sir june ...] [--out accelerator.json]

For every model: the largest difference of its outputs and of the gradient of a loss in what has a prior (in units of
the largest of the CPU's), whether a second run has the same bits, and the seconds of a batch of simulations and of its
gradient on both, medians after a warm-up. Float32.
"""

import argparse
import datetime as dt
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import Results, Times, timed

import calibrant as cal
from calibrant.models.june import Calendar

#: name -> (model, steps, simulations at once)
MODELS: dict[str, tuple[Callable[[], cal.AbstractModel], int | None, int]] = {
    "random-walk": (lambda: cal.models.RandomWalk(100), 100, 64),
    "brock-hommes": (lambda: cal.models.BrockHommes(1000), 100, 64),
    "brock-hommes, mean field": (lambda: cal.models.BrockHommes(None), 100, 64),
    "market": (lambda: cal.models.ThresholdMarket(1000), 100, 64),
    "boarding-school": (cal.models.BoardingSchoolSIR, None, 64),
    "boarding-school, in bed": (cal.models.BoardingSchoolSIBR, None, 64),
    "sir": (lambda: cal.models.SIR.small_world(10_000), 50, 64),
    "regional-sir": (lambda: cal.models.RegionalSIR(10_000, areas=10, steps=50, days=10), None, 64),
    "june": (lambda: cal.models.June(cal.worlds.build_world(20_000, seed=1), Calendar(dt.date(2020, 3, 2), 30)), 30, 8),
}
MODES = {"reverse": cal.ReverseMode(), "hybrid": cal.HybridMode()}


def free_of(params: Any) -> dict[str, Any]:
    """The parameters that have a prior, or all that are no whole numbers, as arrays."""
    about = type(params).describe()
    floating = [name for name in about if jnp.issubdtype(jnp.asarray(getattr(params, name)).dtype, jnp.floating)]
    names = [name for name in floating if about[name].prior is not None] or floating
    return {name: jnp.asarray(getattr(params, name), float) for name in names}


def programs(model: cal.AbstractModel, steps: int | None, simulations: int) -> dict[str, Callable[..., Any]]:
    """A batch of simulations, and the gradient of the mean square of its outputs in each mode."""
    how: dict[str, Any] = {} if steps is None else {"steps": steps}
    words = cal.seeds(1, (simulations,))

    def outputs(params: Any, mode: Any = None) -> Any:
        extra = how if mode is None else how | {"mode": mode}
        return jax.vmap(lambda word: cal.simulate(model, params, seed=word, **extra).outputs)(words)

    def gradient(mode: Any) -> Any:
        def loss(free: dict[str, Any], params: Any) -> Any:
            leaves = jax.tree.leaves(outputs(params.replace(free), mode))
            return sum(jnp.mean(jnp.square(x.astype(float) / (1 + jnp.max(jnp.abs(x))))) for x in leaves)

        return lambda params: jax.grad(loss)(free_of(params), params)

    return {"simulations": outputs} | {name: gradient(mode) for name, mode in MODES.items()}


def difference(a: Any, b: Any) -> float:
    """The largest, of any leaf, over the largest of that leaf."""
    out = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        gap = np.max(np.abs(np.where(np.isfinite(x) | np.isfinite(y), x - y, 0.0)), initial=0.0)
        out = max(out, float(gap / max(np.max(np.abs(x[np.isfinite(x)]), initial=0.0), 1e-30)))
    return out


def measured(results: Results, name: str, accelerator: Any) -> None:
    make, steps, simulations = MODELS[name]
    got: dict[str, dict[str, Any]] = {"cpu": {}, "accelerator": {}}
    times: dict[str, dict[str, Times]] = {"cpu": {}, "accelerator": {}}
    again: dict[str, bool] = {}
    for where, device in (("cpu", jax.devices("cpu")[0]), ("accelerator", accelerator)):
        with jax.default_device(device):
            model = make()
            params = model.default_params
            for what, program in programs(model, steps, simulations).items():
                run = jax.jit(program).lower(params).compile()
                got[where][what] = jax.block_until_ready(run(params))
                times[where][what] = timed(lambda run=run, params=params: run(params), 3, at_least=1.0)
                again[what] = difference(got[where][what], run(params)) == 0
    for what in got["cpu"]:
        gap, same = difference(got["cpu"][what], got["accelerator"][what]), "yes" if again[what] else "no"
        for where in got:
            results.time(
                f"{name}, {simulations} {what}, {where}", times[where][what], difference=gap, again=again[what]
            )
        cpu, acc = times["cpu"][what].seconds, times["accelerator"][what].seconds
        cells = [name, simulations, what, f"{gap:.1e}", same, f"{cpu:.2g}", f"{acc:.2g}", f"{cpu / acc:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    accelerator = jax.devices()[0]
    print(f"JAX {jax.__version__}, {accelerator.device_kind}, Python {platform.python_version()}")
    print("| model | simulations | what | difference | same bits again | CPU, s | accelerator, s | ratio |")
    print("| --- " * 8 + "|")
    with Results("accelerator", arguments.out) as results:
        for name in arguments.models:
            measured(results, name, accelerator)
            jax.clear_caches()


if __name__ == "__main__":
    main()
