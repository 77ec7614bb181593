"""Derivatives of expected losses by enumeration of every outcome, and what estimators say of the same problems."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from covering import product
from jax.flatten_util import ravel_pytree

import calibrant as cal
from calibrant._randomness import Randomness, as_seed
from calibrant._sampling import AbstractSamplingRule


class Scripted(AbstractSamplingRule):
    """Outcomes from a script instead of at random. `script` has one entry a draw and agent."""

    script: jax.Array
    cursor: list
    #: Whether those who do not decide, or cannot, are scripted as 0, so that every outcome counts once.
    once: list
    hard = True

    def _next(self):
        self.cursor[0] += 1
        return self.script[self.cursor[0] - 1]

    def bernoulli(self, p, where, u):
        p, where = jnp.broadcast_to(p, u.shape), jnp.broadcast_to(where, u.shape)
        flat = jnp.stack([self._next() for _ in range(p.size)]).astype(p.dtype).reshape(p.shape)
        self.once.append(jnp.all(((where > 0) & (p > 0)) | (flat == 0)))
        return flat * where

    def categorical(self, p, u, exponentials):
        return jax.nn.one_hot(self._next(), p.shape[0], dtype=p.dtype)


def enumerated_gradient(model, steps, options, loss):
    """d E[loss] / d parameters: the sum over all outcomes of loss times probability, differentiated."""
    flat, unravel = ravel_pytree(model.Params())

    def one(v, script):
        params, rule, log_prob = unravel(v), Scripted(script, [0], []), 0.0

        def rng(phase, t):
            return Randomness.of_step(as_seed(0), phase, t, rule, recorder=cal.LogProbability())

        state = model.init(params, rng("init", 0))
        outputs = []
        for t in range(1, steps + 1):
            r = rng("step", t)
            state = model.step(params, state, None, r)
            log_prob = log_prob + r.notes
            outputs.append(model.observe(params, state, None, rng("observe", t)))
        probability = jnp.exp(log_prob) * jnp.prod(jnp.array([jnp.asarray(x, float) for x in rule.once]))
        return loss(jnp.stack(outputs)) * probability, probability

    scripts = jnp.array(list(itertools.product(*options)))

    def expected(v):
        terms, probabilities = jax.vmap(one, (None, 0))(v, scripts)
        return jnp.sum(terms), jnp.sum(probabilities)

    (value, total), gradient = jax.jit(jax.value_and_grad(expected, has_aux=True))(flat)
    return value, total, gradient


def nonlinear(outputs):
    return jnp.mean(outputs**2) - 0.7 * jnp.sin(outputs[-1]) + 0.2 * outputs[0]


BINARY, TERNARY = (0, 1), (0, 1, 2)
#: name -> (model, steps, options of each draw). Draws of agents that do not decide are scripted too.
CASES = {
    "flips-2-agents": (toys.Flips(2), 3, [BINARY] * 6),
    "choice": (toys.Choice(), 4, [TERNARY] * 4),
    "trade": (toys.Trade(), 3, [BINARY, TERNARY] * 3),
    "contagion": (toys.Contagion(), 2, [BINARY] * 12),
    "random-walk": (cal.models.RandomWalk(1), 5, [BINARY] * 5),
}


@functools.cache
def problem_of(name):
    model, steps, _ = CASES[name]

    def loss(simulations, data, params):
        return jnp.mean(jax.vmap(nonlinear)(simulations.reshape(simulations.shape[0], steps)))

    data = jnp.zeros((steps,)) if not isinstance(model, cal.models.RandomWalk) else jnp.zeros((steps, 1))
    return cal.Problem(model, data, cal.losses.CustomLoss(loss, per_simulation=True), steps=steps)


class Squares(cal.losses.MeanSquaredError):
    """A nonlinear loss that is a sum over times."""

    def each(self, x, y, params):
        return x**2 - 0.7 * jnp.sin(x) + 0.1


def estimates(problem, estimator, n, replicates, rows=None):
    """Gradients at the default parameters, one row a parameter value; `rows` of them at a time."""
    flat, unravel = ravel_pytree(problem.params)
    names = list(problem.parameter_names)
    estimator = estimator.prepare(problem, jax.random.key(0))
    rows = n if rows is None else rows

    def some(seeds):
        params = unravel(flat)
        values = {k: jnp.broadcast_to(getattr(params, k), (rows, *getattr(params, k).shape)) for k in names}

        def total(values):
            return jnp.sum(cal.expect(problem, values, seeds=seeds, estimator=estimator).losses)

        gradient = jax.grad(total)(values)
        return jnp.concatenate([gradient[k].reshape(rows, -1) for k in names], axis=1)

    seeds = cal.seeds(11, (n // rows, rows, replicates))
    return np.asarray(jax.jit(lambda s: jax.lax.map(some, s))(seeds))


def estimate(problem, estimator, n, replicates=2):
    """Mean and standard error."""
    pooled = getattr(estimator, "pool", False)
    each = estimates(problem, estimator, n, replicates, rows=40 if pooled else None)
    # Rows that learned from one another are one observation.
    each = each.mean(axis=1) if pooled else each[0]
    return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))


@functools.cache
def truth_of(name):
    model, steps, options = CASES[name]
    _, total, gradient = enumerated_gradient(model, steps, options, nonlinear)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    return np.asarray(gradient)


@functools.cache
def truth_of_sums(name):
    """The truth for a loss that is a sum over times."""
    return estimates(with_a_sum_over_times(name), cal.estimators.Enumeration(), 1, 1)[0, 0]


def with_a_sum_over_times(name):
    problem = problem_of(name)
    return cal.Problem(problem.model, problem.data, Squares(), steps=problem.steps)


N = 30_000
#: Simulations, so many that standard errors are below a fiftieth of the largest derivative.
ENOUGH = dict.fromkeys(CASES, N) | {"contagion": N // 2}
#: The long run has four times as many in all cases, which sees half the bias.
LONG = (pytest.mark.slow, pytest.mark.optimised)


def with_enough_or_many(*axes, soon):
    """Every case with many simulations, in the long run; those that are `soon` with enough of them."""
    cases = product(*axes, soon=soon)
    enough = [pytest.param(*case.values, False, id=f"{case.id}-enough") for case in cases if not case.marks]
    return enough + [pytest.param(*case.values, True, marks=LONG, id=f"{case.id}-many") for case in cases]
