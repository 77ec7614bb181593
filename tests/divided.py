"""Models and what is compared of them, on one device, on a mesh, and over processes.

As a script, `python divided.py OUT [--models a,b] [--x64] [--processes N --process I --coordinator H:P]`, it writes
what every model simulates and the gradients of its losses, on a mesh of all processes' devices, to an NPZ.
"""

import argparse
import datetime as dt
import functools

import jax

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--models")
    parser.add_argument("--x64", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--coordinator")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_x64", given.x64)
    if given.processes > 1:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)

import jax.numpy as jnp
import numpy as np
import registry

import calibrant as cal
from calibrant import worlds
from calibrant.models.june import Calendar
from calibrant.networks import random_groups


@functools.cache
def town():
    """A world of ten areas."""
    areas = worlds.synthetic_areas(90_000, np.random.default_rng(0))
    return worlds.build_world(3_000, seed=1, areas=areas)


@functools.cache
def june():
    return cal.models.June(town(), Calendar(dt.date(2020, 3, 2), 12), sampled=True, blocks=4)


#: name -> what makes a model, and the steps of it
MODELS = {name: (lambda model=model: model, how) for name, (model, how) in registry.MODELS.items()} | {
    "random-walk": (lambda: cal.models.RandomWalk(4), {"steps": 9}),
    "sir-irregular": (lambda: cal.models.SIR(random_groups(44, 6, seed=3), dt=0.5), {"steps": 9}),
    "threshold-market": (lambda: cal.models.ThresholdMarket(52), {"steps": 9}),
    "june": (june, {"steps": 12}),
}
#: Those that are ours, and no toys of the tests.
BUNDLED = sorted(set(MODELS) - {"drift", "lags", "flips", "choice"})


def model_of(name):
    make, how = MODELS[name]
    return make(), how


def params_of(model):
    return (
        model.default_params.replace({"log_seed": -2.0}) if isinstance(model, cal.models.June) else model.default_params
    )


def losses(model, how, mode, horizon, estimator=None, replicates=2):
    """Losses at three values, and their gradient."""
    params = params_of(model)
    outputs = cal.simulate(model, params, seed=1, **how).outputs
    data = jax.tree.map(lambda x: np.asarray(x).astype(float), outputs)
    if isinstance(data, dict):
        data = dict([next(iter(data.items()))])
    loss = cal.losses.MeanSquaredError()
    loss = cal.losses.Streams(dict.fromkeys(data, loss)) if isinstance(data, dict) else loss
    problem = cal.Problem(model, data, loss, params=params, **how)
    if estimator is not None:
        estimator = estimator.prepare(problem, jax.random.key(0))
    names = [n for n, i in model.Params.describe().items() if i.prior is not None][:2] or ["log_factor"]
    values = {n: jnp.stack([jnp.asarray(getattr(params, n))] * 3) for n in names}

    def total(values):
        out = cal.expect(
            problem, values, seeds=cal.seeds(2, (3, replicates)), mode=mode, horizon=horizon, estimator=estimator
        )
        return jnp.sum(out.losses), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(values)
    return out.losses, gradient


def main():
    made = {}
    count = jax.device_count()
    for name in BUNDLED if given.models is None else given.models.split(","):
        model, how = model_of(name)
        agents = count if model.n_agents and model.n_agents % count == 0 else 1
        with cal.Devices(simulations=count // agents, agents=agents):
            outputs = cal.simulate(model, params_of(model), seed=5, **how).outputs
            both = losses(model, how, cal.HybridMode(), cal.SlidingHorizon(0), replicates=4)
            for what, tree in (("outputs", outputs), ("losses", both[0]), ("gradient", both[1])):
                for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
                    made[f"{name} {what}{jax.tree_util.keystr(path)}"] = np.asarray(x)
    if jax.process_index() == 0:
        np.savez(given.out, **made)


if __name__ == "__main__":
    main()
