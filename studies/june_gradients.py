"""JUNE in a town: derivatives under several horizons against central differences with common random numbers.

Derivatives of log10 of cumulative infections on a few days, in every free parameter, at the defaults.

    python studies/june_gradients.py [--people 20000] [--discounts 0 0.8 0.87 0.95 1] [--out studies/out/june_gradients]
"""

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path, write_text
from calibrant.models.june import Calendar

DAYS = np.array([15, 25, 35, 50])


def batches(run: Any, n: int, size: int) -> np.ndarray:
    return np.concatenate([np.asarray(run(cal.seeds(i, (size,), stream=3))) for i in range(n // size)])


def picture(names: list[str], truth: tuple, found: dict[str, tuple], path: Path) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, len(DAYS), sharey=True)
    shown = [i for i in range(len(names)) if np.all(truth[0][:, i] > 4 * truth[1][:, i])]
    for d, axis in enumerate(axes):
        for k, (label, (mean, error)) in enumerate(found.items()):
            ratio, bar = mean[d, shown] / truth[0][d, shown], error[d, shown] / truth[0][d, shown]
            at = np.arange(len(shown)) + 0.12 * (k - (len(found) - 1) / 2)
            axis.errorbar(at, ratio, yerr=np.minimum(bar, 0.9 * ratio), fmt="o", ms=3.5, lw=1, label=label)
        axis.axhline(1, color="0.5", lw=0.8)
        axis.set(yscale="log", title=f"day {DAYS[d]}")
        axis.set_xticks(range(len(shown)), [names[i].removeprefix("log_beta_") for i in shown], rotation=60, ha="right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("derivative over central difference")
    axes[0].legend(fontsize=7.5, frameon=False, title="discount a step", title_fontsize=7.5)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=float, default=20_000)
    parser.add_argument("--discounts", type=float, nargs="+", default=[0, 0.8, 0.87, 0.95, 1])
    parser.add_argument("--runs", type=int, default=80, help="seeds of the differences; a third of it of derivatives")
    parser.add_argument("--step", type=float, default=0.15)
    parser.add_argument("--out", type=Path, default=Path("studies/out/june_gradients"))
    arguments = parser.parse_args()
    world = cal.worlds.build_world(round(arguments.people), seed=1)
    model = cal.models.June(world, Calendar(dt.date(2020, 3, 1), int(DAYS[-1])))
    base = model.default_params
    names = [name for name, info in type(base).describe().items() if info.prior is not None]
    at = jnp.asarray([getattr(base, name) for name in names])

    def series(values: Any, seed: Any, **how: Any) -> Any:
        params = base.replace(dict(zip(names, values, strict=True)))
        out = cal.simulate(model, params, seed=seed, **how).outputs["cumulative_infections"]
        return jnp.log10(1 + out[DAYS - 1])

    many = jax.jit(lambda values, words: jax.lax.map(lambda w: series(values, w), words))
    columns = []
    for i in range(len(names)):
        shift = arguments.step * jnp.eye(len(names))[i]
        up, down = (batches(lambda w, v=at + s * shift: many(v, w), arguments.runs, 8) for s in (1, -1))
        columns.append((up - down) / (2 * arguments.step))
    each = np.stack(columns, axis=-1)  # runs, days, parameters

    def summary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.mean(0), x.std(0) / np.sqrt(len(x))

    truth = summary(each)
    found: dict[str, tuple] = {}
    for discount in arguments.discounts:
        horizon, mode = cal.GeometricHorizon(discount), cal.CheckpointedReverseMode()
        one = jax.jacrev(lambda v, w, h=horizon, m=mode: series(v, w, mode=m, horizon=h))
        found[f"{discount:g}"] = summary(
            batches(jax.jit(lambda words, one=one: jax.lax.map(lambda w: one(at, w), words)), arguments.runs // 3, 4)
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    stored = {"days": DAYS.tolist(), "names": names, "differences": [x.tolist() for x in truth]}
    stored["derivatives"] = {k: [x.tolist() for x in v] for k, v in found.items()}
    write_text(arguments.out.with_suffix(".json"), json.dumps(stored, indent=1) + "\n")
    picture(names, truth, found, arguments.out.with_suffix(".png"))
    for d, day in enumerate(DAYS):
        print(f"\nday {day}\n\n| parameter | differences | {' | '.join(found)} |\n{'| --- ' * (len(found) + 2)}|")
        for i, name in enumerate(names):
            cells = [f"{m[d, i]:.3g} ± {e[d, i]:.1g}" for m, e in (truth, *found.values())]
            print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
