"""Simulators outside of JAX, as small as can be."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import calibrant as cal
from calibrant.black_box import Command, Joblib

HERE = Joblib(1)
MU = {"mu": cal.parameter(0.3, prior=dist.Normal(0.0, 1.0), units="m")}
DATA = {"x": np.array([0.5, 0.9, 1.1, 0.7])}


def black_box(run, **kwargs):
    return cal.BlackBox(run, **{"parameters": MU, "outputs": {"x": 4}, "executor": HERE, **kwargs})


def losses(model, mu, replicates=1):
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(1.0))
    out = cal.expect(problem, {"mu": jnp.asarray(mu)}, seeds=cal.seeds(3, (len(mu), replicates)))
    return np.array(out.losses)


def noisy(sd):
    def run(params, seed):
        import numpy as np

        return {"x": params["mu"] + sd * np.random.default_rng(seed).standard_normal(4)}

    return run


def failing(what):
    """Fails, in some way, where mu is above 1."""

    def run(params, seed):
        if params["mu"] > 1:
            what()
        return {"x": [params["mu"]] * 4}

    return run


def command(arguments, output=None, **kwargs):
    kwargs = {"parameters": {"mu": 0.25, "rates": [0.5, 2.0]}, "outputs": {"x": 2}, **kwargs}
    return cal.BlackBox(Command(arguments, output), executor=HERE, **kwargs)
