"""Draws of the posterior predictive distribution."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from calibrant._devices import gathered
from calibrant._problem import Problem
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.posteriors import Posterior

_AT_ONCE = 20


def predictive(problem: Problem, posterior: Posterior, *, draws: int = 200, seed: int = 0) -> Any:
    """Simulated data at draws of the posterior, with the observation noise of the loss if it is a likelihood.

    **Returns:** like the model's outputs, NumPy arrays with a leading axis of draws.
    """
    return jax.tree.map(np.asarray, _predict(problem, posterior, draws, seed))


@eqx.filter_jit
def _predict(problem: Problem, posterior: Posterior, draws: int, seed: int) -> Any:
    key, noise = jax.random.split(jax.random.key(seed))
    values = posterior.sample(key, draws)

    def one(values, words, key):
        params = problem.with_values(values)
        out = simulate(problem.model, params, seed=words, steps=problem.steps, inputs=problem.inputs).outputs
        return problem.loss.observe(key, out, values)

    inputs = values, seeds(seed, draws, stream=7), jax.random.split(noise, draws)
    return gathered(jax.lax.map(lambda x: one(*x), inputs, batch_size=_AT_ONCE))  # large models must fit in memory
