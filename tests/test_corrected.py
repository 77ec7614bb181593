"""Straight-through, corrected by differences that are remembered, against enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from covering import product
from enumerated import problem_of
from jaxtyping import Array

import calibrant as cal
from calibrant.inference._corrected import Memory
from calibrant.inference._losses import Differentiation

pytestmark = pytest.mark.usefixtures("x64")
CHAINS, UPDATES, SETTLED, VALUES, SPREAD, STEP = 24, 300, 100, 100, 0.2, 0.1


def how(estimator):
    return Differentiation(estimator, cal.ReverseMode(), cal.FullHorizon(), None)


def moments(g, away):
    """Of gradients: their mean, and their mean product with the deviations of the coordinates."""
    return jnp.concatenate([jnp.mean(g, axis=0), (g.T @ away / len(g)).ravel()])


def exact_moments(problem, prior):
    """Those of central differences of the enumerated loss, by a Gauss-Hermite rule of degree 13 in each coordinate."""
    x, w = np.polynomial.hermite_e.hermegauss(7)
    nodes = SPREAD * np.array(list(itertools.product(x, repeat=prior.dim)))
    weights = np.prod(list(itertools.product(w / w.sum(), repeat=prior.dim)), axis=1)
    moves = STEP * np.eye(prior.dim)
    around = np.stack([nodes[:, None] + moves, nodes[:, None] - moves])
    points = jnp.asarray(around.reshape(-1, prior.dim))
    losses, _ = how(cal.estimators.Enumeration()).losses(problem, prior, points, cal.seeds(0, (len(points), 1)))
    up, down = np.asarray(losses).reshape(around.shape[:-1])
    g = (up - down) / (2 * STEP)
    return np.concatenate([weights @ g, ((weights[:, None] * g).T @ nodes).ravel()])


@pytest.mark.optimised
@pytest.mark.parametrize(
    "name",
    product(["flips-2-agents", "choice", "trade", "contagion"], soon=lambda name: name == "flips-2-agents"),
)
def test_what_is_remembered_takes_the_bias_away(name):
    """Both moments that a normal posterior is moved by, over draws of one, are those of the enumerated gradient; those
    of straight-through are not. Standard errors are over chains of updates that share nothing."""
    problem = problem_of(name)
    prior = cal.Prior({k: dist.Normal(getattr(problem.params, k), 1.0) for k in problem.parameter_names})
    corrected, plain = cal.Corrected(differences=VALUES, step=STEP, memory=50), how(cal.estimators.Pathwise())

    def chain(key):
        def update(memory, i):
            z = SPREAD * jax.random.normal(jax.random.fold_in(key, i), (VALUES, prior.dim))
            words = jax.random.bits(jax.random.fold_in(key, -1 - i), (VALUES, 1, 2), jnp.uint32)
            (_, finite, g), memory = corrected.gradients(memory, plain, problem, prior, z, words, i)
            biased = plain.gradients(problem, prior, z, words)[2]
            return memory, (moments(g, z), moments(biased, z), jnp.all(finite))

        seen = jax.lax.scan(update, corrected.init_training(prior.dim), jnp.arange(UPDATES))[1]
        return jax.tree.map(lambda x: jnp.mean(x[SETTLED:], 0), seen)

    keys = jax.random.split(jax.random.key(3), CHAINS)
    mean, biased, finite = jax.jit(lambda keys: jax.lax.map(chain, keys))(keys)
    assert np.all(finite == 1)
    truth = exact_moments(problem, prior)

    def off(x):
        """In standard errors."""
        error = np.asarray(x).std(0, ddof=1) / np.sqrt(CHAINS)
        assert error.max() < 0.02 * np.abs(truth).max()
        return (np.asarray(x).mean(0) - truth) / error

    assert np.all(np.abs(off(mean)) < 4), off(mean)
    assert np.any(np.abs(off(biased)) > 8)


def test_biased_gradients_without_bound_do_no_harm():
    """What is learnt of a gradient of 10^12 is little, and what is predicted from it as long as the differences."""
    memory, key = Memory.empty(2), jax.random.key(0)
    wild = 1e12 * jax.random.normal(key, (200,))
    z = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (200, 2))
    for i in range(200):
        y = 1.0 + 3.0 * z[i, 0]
        size = jnp.maximum(memory.size(), jnp.abs(y))
        h = jnp.clip(wild[i], -3 * size[i % 2], 3 * size[i % 2])
        memory = memory.faded(jnp.asarray(0.99)).with_one(
            jnp.asarray(i % 2), jnp.concatenate([z[i], h[None], y[None]]), jnp.asarray(True)
        )
    h = jnp.clip(wild[:, None], -3 * memory.size(), 3 * memory.size())
    predicted = memory.predicted(z, h)
    assert np.max(np.abs(predicted - (1 + 3 * z[:, :1]))) < 0.3


def test_a_memory_of_nothing_leaves_the_gradient_alone_and_what_is_not_usable_out():
    memory = Memory.empty(2)
    h = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    np.testing.assert_array_equal(memory.predicted(jnp.ones((2, 2)), h), h)
    seen = jnp.array([1.0, 2.0, 3.0, jnp.nan])
    same = memory.with_one(jnp.asarray(0), seen, jnp.asarray(False))
    assert eqx.tree_equal(same, memory)


def test_a_calibration_counts_what_it_runs_and_follows_the_differences():
    """`Drift` is without noise or bias: the correction has nothing to add."""
    problem = cal.Problem(toys.Drift(), jnp.array([1.0]), cal.losses.GaussianLogLikelihood(0.5), steps=1)
    prior = cal.Prior.of(problem)
    records, narrow = [], cal.posteriors.FullRankGaussian(0.1)
    for estimator in (cal.estimators.Pathwise(), cal.Corrected(differences=3)):
        method = cal.GVI(estimator=estimator, simulations=4, replicates=2, max_updates=20, kl_samples=50, family=narrow)
        assert method.runs_an_update(problem, prior.dim) == (8 if estimator == cal.estimators.Pathwise() else 20)
        records.append(method.step(problem, method.init(problem, prior, 0), 20)[1])
    np.testing.assert_allclose(records[1].gradient_norm, records[0].gradient_norm, rtol=1e-3)


@jax.custom_vjp
def wild(x, factor):
    return x


wild.defvjp(lambda x, factor: (x, factor), lambda factor, cotangent: (factor * cotangent, jnp.zeros_like(factor)))


class Wild(cal.estimators.Pathwise):
    """Its derivative is so many times too long, infinite, or of the wrong sign."""

    factor: Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))

    def losses(self, problem, run, values, seeds):
        losses, trajectories = super().losses(problem, run, values, seeds)
        return wild(losses, self.factor.astype(losses.dtype)), trajectories


@pytest.mark.parametrize("factor", [-1.0, 1e30, np.inf, np.nan])
def test_a_calibration_finds_the_mode_whatever_the_derivative(factor):
    method = cal.GVI(
        estimator=cal.Corrected(Wild(factor=jnp.asarray(factor))),
        simulations=10,
        max_updates=400,
        learning_rate=1e-2,
        evaluate_every=200,
        kl_samples=100,
        family=cal.posteriors.FullRankGaussian(),
    )
    result = cal.calibrate(_problem(), method=method, progress=False, check_gradients=False)
    assert np.all(np.isfinite(result.updates["gradient_norm"]))
    draws = np.asarray(result.sample(0, 2000)["theta"])
    assert abs(draws.mean() - 0.8) < 0.15


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda: cal.Corrected(differences=0), "differences", id="no differences"),
        pytest.param(lambda: cal.Corrected(memory=0), "memory", id="no memory"),
        pytest.param(lambda: cal.Corrected(step=-1.0), "step", id="a negative step"),
        pytest.param(
            lambda: _checked(cal.Corrected(cal.FiniteDifferences())), "not FiniteDifferences", id="of differences"
        ),
        pytest.param(
            lambda: _checked(cal.Corrected(cal.estimators.REBAR())), "use that by itself", id="of what has no bias"
        ),
        pytest.param(
            lambda: _checked(cal.Corrected(cal.estimators.Enumeration())), "not Enumeration", id="of the truth"
        ),
        pytest.param(
            lambda: _checked(cal.Corrected(cal.estimators.ScoreFunction())), "not ScoreFunction", id="of a score"
        ),
        pytest.param(lambda: _checked(cal.Corrected(), simulations=1), "lower `differences`", id="one value an update"),
        pytest.param(
            lambda: cal.Corrected(memory=1).check(problem_of("choice"), 2, 5, 1), "raise either", id="a short memory"
        ),
        pytest.param(
            lambda: cal.Corrected().check(problem_of("choice"), 201, 5, 1), "200 of them at most", id="many parameters"
        ),
        pytest.param(lambda: _at_points(cal.Corrected()), "it is for GVI", id="a correction at a point"),
        pytest.param(lambda: _at_points(cal.FlowScore()), "it is for GVI", id="a flow score at a point"),
    ],
)
def test_what_cannot_be_corrected_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def _problem():
    return cal.Problem(toys.Drift(), jnp.array([1.0]), cal.losses.GaussianLogLikelihood(0.5), steps=1)


def _checked(estimator, **how):
    cal.GVI(estimator=estimator, **how).check(_problem(), cal.Prior.of(_problem()))


def _at_points(estimator):
    # Methods say so of types that a checker would have refused.
    plain = how(cal.estimators.Pathwise())
    object.__setattr__(plain, "estimator", estimator)
    plain.check(_problem(), cal.Prior.of(_problem()), 5, 1, "Point")
