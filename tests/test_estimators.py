"""Gradient estimators against the truth, by enumeration of every outcome."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from jax.flatten_util import ravel_pytree
from registry import ESTIMATORS

import calibrant as cal
from calibrant._sampling import AbstractSamplingRule

pytestmark = pytest.mark.usefixtures("x64")


class Scripted(AbstractSamplingRule):
    """Outcomes from a script instead of at random. `script` has one entry a draw and agent."""

    script: jax.Array
    cursor: list
    hard = True

    def _next(self):
        self.cursor[0] += 1
        return self.script[self.cursor[0] - 1]

    def bernoulli(self, p, where, u):
        p, where = jnp.broadcast_to(p, u.shape), jnp.broadcast_to(where, u.shape)
        flat = jnp.stack([self._next() for _ in range(p.size)]).astype(p.dtype).reshape(p.shape)
        return flat * where

    def categorical(self, p, u, exponentials):
        return jax.nn.one_hot(self._next(), p.shape[0], dtype=p.dtype)


def enumerated_gradient(model, steps, options, loss):
    """d E[loss] / d parameters: the sum over all outcomes of loss times probability, differentiated."""
    from calibrant._randomness import Randomness, as_seed

    flat, unravel = ravel_pytree(model.Params())

    def one(v, script):
        params, rule, log_prob = unravel(v), Scripted(script, [0]), 0.0

        def rng(phase, t):
            return Randomness.of_step(as_seed(0), phase, t, rule, recording=True)

        state = model.init(params, rng("init", 0))
        outputs = []
        for t in range(1, steps + 1):
            r = rng("step", t)
            state = model.step(params, state, None, r)
            log_prob = log_prob + r.log_prob
            outputs.append(model.observe(params, state, None, rng("observe", t)))
        return loss(jnp.stack(outputs)) * jnp.exp(log_prob), jnp.exp(log_prob)

    scripts = jnp.array(list(itertools.product(*options)))

    def expected(v):
        terms, probabilities = jax.vmap(one, (None, 0))(v, scripts)
        return jnp.sum(terms), jnp.sum(probabilities)

    (value, total), gradient = jax.jit(jax.value_and_grad(expected, has_aux=True))(flat)
    return value, total, gradient


def nonlinear(outputs):
    return jnp.mean(outputs**2) - 0.7 * jnp.sin(outputs[-1]) + 0.2 * outputs[0]


BINARY, TERNARY = (0, 1), (0, 1, 2)
#: name -> (model, steps, options of each draw). Draws of agents that do not decide are scripted too, and count once.
CASES = {
    "flips-1-agent": (toys.Flips(1), 4, [BINARY] * 4),
    "flips-2-agents": (toys.Flips(2), 3, [BINARY] * 6),
    "choice": (toys.Choice(), 4, [TERNARY] * 4),
    "contagion": (toys.Contagion(), 1, [BINARY] * 6),
    "random-walk": (cal.models.RandomWalk(1), 5, [BINARY] * 5),
}


def estimate(model, steps, estimator, n, replicates=2):
    flat, unravel = ravel_pytree(model.Params())
    names = list(model.Params.describe())

    def loss(simulations, data, params):
        return jnp.mean(jax.vmap(nonlinear)(simulations.reshape(simulations.shape[0], steps)))

    data = jnp.zeros((steps,)) if not isinstance(model, cal.models.RandomWalk) else jnp.zeros((steps, 1))
    problem = cal.Problem(model, data, cal.losses.CustomLoss(loss), steps=steps)
    params = unravel(flat)
    values = {k: jnp.broadcast_to(getattr(params, k), (n, *getattr(params, k).shape)) for k in names}
    seeds = cal.seeds(11, (n, replicates))

    def total(values):
        return jnp.sum(cal.expect(problem, values, seeds=seeds, estimator=estimator).losses)

    gradient = jax.jit(jax.grad(total))(values)
    each = np.concatenate([np.asarray(gradient[k]).reshape(n, -1) for k in names], axis=1)
    return each.mean(0), each.std(0, ddof=1) / np.sqrt(n)


_truth: dict = {}


def truth_of(name):
    if name not in _truth:
        model, steps, options = CASES[name]
        _, total, gradient = enumerated_gradient(model, steps, options, nonlinear)
        if name != "contagion":
            np.testing.assert_allclose(total, 1.0, rtol=1e-12)
            _truth[name] = np.asarray(gradient)
        else:
            # who does not decide has two scripts for one outcome, at every step the same number: 2^3 of 2^6
            np.testing.assert_allclose(total, 8.0, rtol=1e-12)
            _truth[name] = np.asarray(gradient) / 8
    return _truth[name]


N = 120_000


@pytest.mark.parametrize("name", CASES)
def test_score_function_is_unbiased(name):
    model, steps, _ = CASES[name]
    mean, error = estimate(model, steps, ESTIMATORS["score-function"], N)
    truth = truth_of(name)
    assert error.max() <= 0.02 * np.abs(truth).max()
    assert np.all(np.abs(mean - truth) <= 4 * error + 1e-12)


def test_biased_estimators_fail_the_same_test():
    for estimator in ("straight-through", "gumbel"):
        failed = []
        for name, (model, steps, _) in CASES.items():
            mean, error = estimate(model, steps, ESTIMATORS[estimator], N)
            if np.any(np.abs(mean - truth_of(name)) > 4 * error + 1e-12):
                failed.append(name)
        assert len(failed) >= 3, (estimator, failed)


def test_a_broken_score_function_fails_the_same_test():
    class Broken(cal.estimators.ScoreFunction):
        def losses(self, problem, run, values, seeds):
            losses, trajectories = super().losses(problem, run, values, seeds)
            return jax.lax.stop_gradient(losses) + 0.9 * (losses - jax.lax.stop_gradient(losses)), trajectories

    model, steps, _ = CASES["choice"]
    mean, error = estimate(model, steps, Broken(), N)
    assert np.any(np.abs(mean - truth_of("choice")) > 4 * error)


@pytest.mark.parametrize("name", ["flips-1-agent", "flips-2-agents"])
def test_differences_have_what_jumps_of_discrete_draws_contribute(name):
    """Against the enumerated derivative; the step's own error, of order step^2, is left out by Richardson's rule."""
    model, steps, _ = CASES[name]
    params, n = model.Params(), 40_000

    def loss(simulations, data, params):
        return jnp.mean(jax.vmap(nonlinear)(simulations.reshape(simulations.shape[0], steps)))

    problem = cal.Problem(model, jnp.zeros(steps), cal.losses.CustomLoss(loss), steps=steps)
    prior = cal.Prior({k: dist.Normal(getattr(params, k), 1.0) for k in ("p", "q")})
    words = cal.seeds(3, (n, 1))

    def gradients(step):
        differences = cal.FiniteDifferences(step)
        points, seeds = differences.stencil(jnp.zeros((n, 2)), words)
        out = cal.expect(problem, jax.vmap(prior.constrain)(points), seeds=seeds)
        return differences.combine(out.losses, out.finite, n)[2]

    fine = np.asarray((4 * gradients(0.2) - gradients(0.4)) / 3)
    mean, error = fine.mean(0), fine.std(0, ddof=1) / np.sqrt(n)
    assert np.all(error < 0.02)
    assert np.all(np.abs(mean - truth_of(name)) <= 4 * error + 1e-12)


@pytest.mark.parametrize("replicates", [1, 3])
def test_baselines_leave_the_mean_alone(replicates):
    model, steps, _ = CASES["flips-1-agent"]
    mean, error = estimate(model, steps, cal.estimators.ScoreFunction(), 20_000, replicates)
    assert np.all(np.abs(mean - truth_of("flips-1-agent")) <= 4 * error)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_running_few_at_once_changes_nothing(estimator):
    model = cal.models.SIR.small_world(30)
    data = {"infected": np.full(6, 8.0), "recovered": np.full(6, 2.0)}
    mse = cal.losses.MeanSquaredError()
    problem = cal.Problem(model, data, cal.losses.Streams({"infected": mse, "recovered": mse}), steps=6)
    values = {"beta": jnp.array([0.3, 0.9, 1.5]), "gamma": jnp.array([0.1, 0.3, 0.2])}
    seeds = cal.seeds(2, (3, 2))
    results = []
    for mode in (cal.ReverseMode(), cal.CheckpointedReverseMode(), cal.HybridMode()):
        for at_once in (None, 1, 4, 100):

            def total(values, mode=mode, at_once=at_once):
                out = cal.expect(
                    problem,
                    values,
                    seeds=seeds,
                    estimator=ESTIMATORS[estimator],
                    mode=mode,
                    simulations_at_once=at_once,
                )
                return jnp.sum(out.losses), out.losses

            gradient, losses = jax.jit(jax.grad(total, has_aux=True))(values)
            results.append((losses, gradient["beta"], gradient["gamma"]))
    for other in results[1:]:
        np.testing.assert_array_equal(other[0], results[0][0])
        np.testing.assert_allclose(other[1], results[0][1], rtol=1e-9)
        np.testing.assert_allclose(other[2], results[0][2], rtol=1e-9)


def test_ensemble_losses_leave_one_out():
    model = toys.Flips(1)
    problem = cal.Problem(model, jnp.ones(3), cal.losses.EnergyScore(), steps=3)
    values = {"p": jnp.full((2,), 0.4)}
    with pytest.raises(ValueError, match="set `replicates` to 3"):
        cal.expect(problem, values, seeds=cal.seeds(0, (2, 2)), estimator=cal.estimators.ScoreFunction())
    with pytest.raises(ValueError, match="at least 2 replicates"):
        cal.expect(problem, values, seeds=cal.seeds(0, (2, 1)))
    out = cal.expect(problem, values, seeds=cal.seeds(0, (2, 3)), estimator=cal.estimators.ScoreFunction())
    assert np.all(np.isfinite(out.losses))


def test_impossible_combinations_are_refused():
    model = toys.Flips(1)
    problem = cal.Problem(model, jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    one = {"p": jnp.array([0.4])}
    with pytest.raises(ValueError, match="at least two simulations"):
        cal.expect(problem, one, seeds=cal.seeds(0, (1, 1)), estimator=cal.estimators.ScoreFunction())
    with pytest.raises(ValueError, match="no parameter 'pp'"):
        cal.expect(problem, {"pp": jnp.array([0.4])}, seeds=cal.seeds(0, (1, 1)))
    with pytest.raises(ValueError, match="rows of seeds"):
        cal.expect(problem, one, seeds=cal.seeds(0, (2, 1)))
    with pytest.raises((ValueError, TypeError), match=r"\(batch, replicates, 2\)|Type-check error"):
        cal.expect(problem, one, seeds=cal.seeds(0, 2))
    soft = cal.GumbelSoftmax(0.5, straight_through=False)
    with pytest.raises(ValueError, match="relaxed samples"):
        cal.simulate(model, model.Params(), seed=0, steps=3, rule=soft, record=True)
    with pytest.raises(ValueError, match="positive temperature"):
        cal.GumbelSoftmax(0.0)
    method = cal.GVI(estimator=cal.FlowScore(), simulations=1)
    with pytest.raises(ValueError, match="at least 2 simulations"):
        method.init(problem, cal.Prior({"p": dist.Uniform(0.0, 1.0)}), 0)
