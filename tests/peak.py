"""Peak of resident memory of gradients as planned and in reverse mode, in MB: run by test_planner, in a process of its
own."""

import json
import sys

import jax
import numpy as np

import calibrant as cal
from calibrant._randomness import seeds
from calibrant.inference._gvi import _gradients_for_plan
from calibrant.inference._memory import resident_memory
from calibrant.inference._planner import Compiled


def problem(agents):
    model = cal.models.SIR(cal.networks.random_groups(agents, 5, contiguous=True))
    loss = cal.losses.Streams({"infected": cal.losses.MeanSquaredError(scale=100.0)})
    it = cal.Problem(model, {"infected": np.full(40, 10.0)}, loss, params=model.Params(initial=50.5), steps=40)
    return it, cal.Prior.of(it, free=["beta", "gamma"])


def gradients(it, prior, method):
    z = jax.random.normal(jax.random.key(0), (method.simulations, prior.dim))
    arguments = (cal.estimators.Pathwise(), method, it, prior, z, seeds(0, (method.simulations, 1)))
    return Compiled(_gradients_for_plan, arguments)


def peak(run):
    """Above what there was before."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = resident_memory()
    run()
    with open("/proc/self/status", encoding="ascii") as lines:
        after = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return (after - before) / 1e6


budget = float(sys.argv[1])  # MB
method = cal.GVI(simulations=2, evaluation_simulations=2, kl_samples=10)
it, prior = problem(400_000)
planned, plan = cal.GVI(
    simulations=2, evaluation_simulations=2, kl_samples=10, mode=cal.AutoMode(budget * 1e6 / 2**30)
).planned(it, prior)
gradients(*problem(4_000), method)()  # what a process takes once, for threads and libraries, is there already
print(json.dumps({
    "planned": peak(gradients(it, prior, planned)),
    "predicted": plan.chosen.memory / 1e6,
    "reverse": peak(gradients(it, prior, method)),
    "chosen": plan.chosen.name,
}))  # fmt: skip
