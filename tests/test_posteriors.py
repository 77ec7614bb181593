"""Priors, coordinates, flows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from registry import FAMILIES
from scipy import stats

import calibrant as cal
from calibrant._prior import BijectionCoordinate, QuantileCoordinate
from calibrant.posteriors import Posterior, kl_from_prior

PRIORS = {
    "uniform": dist.Uniform(-1.0, 2.0),
    "normal": dist.Normal(1.0, 2.0),
    "log-normal": dist.LogNormal(0.5, 0.7),
    "half-normal": dist.HalfNormal(2.0),
    "exponential": dist.Exponential(0.5),
    "gamma": dist.Gamma(2.0, 3.0),
    "beta": dist.Beta(0.5, 0.7),
    "student": dist.StudentT(4.0),
    "vector": dist.Uniform(0.0, 1.0).expand([3]),
    "simplex": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", PRIORS)
def test_coordinates_are_bijections_that_carry_the_density(name):
    prior = cal.Prior({"x": PRIORS[name]})
    for z in np.random.default_rng(0).normal(size=(5, prior.dim)):
        z = jnp.asarray(z, dtype=jnp.float32)
        values = prior.constrain(z)
        np.testing.assert_allclose(prior.unconstrain(values), z, rtol=2e-3, atol=2e-3)
        if np.size(values["x"]) == prior.dim:  # of shares that sum to one, the last has no coordinate
            slope = jax.jacfwd(lambda u: jnp.ravel(prior.constrain(u)["x"]))(z)
            change = np.linalg.slogdet(slope)[1]
            np.testing.assert_allclose(prior.log_base(z), prior.log_prob(values) + change, rtol=1e-3, atol=5e-3)


def has_inverse(prior):
    """Whether numpyro's inverse distribution function, of an entry, can be evaluated and differentiated."""
    entry = prior.base_dist if isinstance(prior, dist.ExpandedDistribution) else prior
    try:
        theta, slope = jax.value_and_grad(entry.icdf)(0.3)
    except (NotImplementedError, ImportError):
        return False
    return bool(slope > 0 and abs(entry.cdf(theta) - 0.3) < 1e-3)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_a_prior_with_an_inverse_distribution_function_is_a_standard_normal_in_its_coordinate(prior):
    kind = QuantileCoordinate if has_inverse(prior) else BijectionCoordinate
    assert type(cal.Prior({"x": prior}).coordinates[0]) is kind


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_flow_starts_at_the_prior_and_gives_its_draws_the_density_it_evaluates(family):
    prior = cal.Prior({"a": dist.Uniform(0.0, 2.0), "b": dist.LogNormal(0.0, 1.0), "c": dist.Normal(0.0, 1.0)})
    posterior = Posterior(prior, family.build(jax.random.key(0), prior.dim))
    z, log_q = posterior.sample_coordinates(jax.random.key(1), 500)
    assert abs(float(kl_from_prior(z, log_q, prior))) < 1e-4
    draws = posterior.sample(0, 4000)
    assert list(draws) == ["a", "b", "c"]
    assert stats.kstest(np.asarray(draws["a"]), stats.uniform(0, 2).cdf).pvalue > 1e-3
    point = {k: v[0] for k, v in draws.items()}
    np.testing.assert_allclose(posterior.log_prob(point), prior.log_prob(point), rtol=1e-3, atol=1e-3)
    moved = jax.tree.map(lambda x: x + 0.05 if hasattr(x, "dtype") and x.dtype == jnp.float32 else x, posterior.flow)
    z, log_q = Posterior(prior, moved).sample_coordinates(jax.random.key(1), 50)
    np.testing.assert_allclose(jax.vmap(moved.log_prob)(z), log_q, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dim", [2, 5], ids=["2 parameters", "5 parameters"])
def test_a_flow_can_move_every_coordinate(family, dim):
    for seed in range(2):
        flow = family.build(jax.random.key(seed), dim)
        moving, fixed = cal.posteriors.trainable(flow)

        def total(moving, fixed=fixed):
            return jnp.sum(eqx.combine(moving, fixed).sample(jax.random.key(1), (64,)), axis=0)

        jacobian = jax.jit(jax.jacrev(total))(moving)
        reach = sum(np.abs(np.asarray(x)).reshape(dim, -1).sum(1) for x in jax.tree.leaves(jacobian))
        assert np.all(reach > 0)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_flow_of_one_parameter_starts_at_the_prior_unless_it_is_of_coupling_layers(family):
    if isinstance(family, cal.posteriors.CouplingSplineFlow):  # one half of the parameters moves the other
        with pytest.raises(ValueError, match="two free parameters"):
            family.build(jax.random.key(0), 1)
        return
    x, log_q = family.build(jax.random.key(0), 1).sample_and_log_prob(jax.random.key(1), (100,))
    np.testing.assert_allclose(log_q, stats.norm.logpdf(np.asarray(x)).sum(1), rtol=1e-4, atol=1e-4)


def _fit(prior, loss, updates=1500, **kwargs):
    model = toys.Drift()
    problem = cal.Problem(model, jnp.zeros(1), loss, steps=1)
    method = cal.GVI(simulations=20, max_updates=updates, learning_rate=5e-3, evaluate_every=250, **kwargs)
    return cal.calibrate(problem, prior, method=method, progress=False)


def test_a_conjugate_posterior_is_found():
    """theta ~ N(0, 1), x_1 = theta exactly, y = 1 ~ N(x_1, 0.5^2): the posterior is N(0.8, 0.2)."""
    problem = cal.Problem(toys.Drift(), jnp.ones(1), cal.losses.GaussianLogLikelihood(0.5), steps=1)
    method = cal.GVI(simulations=20, max_updates=1500, learning_rate=5e-3, evaluate_every=250)
    result = cal.calibrate(problem, method=method, progress=False)
    draws = np.asarray(result.sample(1, 20_000)["theta"])
    np.testing.assert_allclose(draws.mean(), 0.8, atol=0.05)
    np.testing.assert_allclose(draws.std(), np.sqrt(0.2), rtol=0.1)
    # the normalised log-density at a point
    got = float(result.log_prob({"theta": jnp.array(0.8)}))
    np.testing.assert_allclose(got, stats.norm(0.8, np.sqrt(0.2)).logpdf(0.8), atol=0.12)


def test_a_posterior_piled_at_a_bound_is_fitted():
    """theta ~ U(0, 1) and a loss of -20 theta: the posterior is a truncated exponential leaning on 1."""
    result = _fit({"theta": dist.Uniform(0.0, 1.0)}, lambda x, y, p: -20.0 * p["theta"])
    draws = np.asarray(result.sample(1, 20_000)["theta"])
    assert draws.max() <= 1.0
    np.testing.assert_allclose(1 - draws.mean(), 1 / 20, rtol=0.25)


@pytest.mark.slow
def test_a_posterior_on_a_simplex_is_fitted():
    """Counts 6, 3, 1 of three categories under a flat Dirichlet: the posterior is Dirichlet(7, 4, 2)."""

    class SharesParams(cal.Params):
        shares: jax.Array = cal.parameter([0.4, 0.3, 0.3], prior=dist.Dirichlet(jnp.ones(3)))

    class Shares(cal.AbstractModel):
        Params = SharesParams

        def init(self, params, rng):
            return params.shares

        def step(self, params, state, inputs_t, rng):
            return state

        def observe(self, params, state, inputs_t, rng):
            return params.shares

    counts = jnp.array([6.0, 3.0, 1.0])
    problem = cal.Problem(Shares(), counts[None], lambda x, y, p: -jnp.sum(counts * jnp.log(p["shares"])), steps=1)
    method = cal.GVI(simulations=20, max_updates=1500, learning_rate=5e-3, evaluate_every=250)
    draws = np.asarray(cal.calibrate(problem, method=method, progress=False).sample(0, 20_000)["shares"])
    np.testing.assert_allclose(draws.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(0), np.array([7, 4, 2]) / 13, atol=0.02)
    exact = np.sqrt(stats.dirichlet([7, 4, 2]).var())
    np.testing.assert_allclose(draws.std(0), exact, rtol=0.15)


@pytest.mark.parametrize(
    ("priors", "match"),
    [
        pytest.param({}, "at least one", id="of no parameter"),
        pytest.param({"x": 3.0}, "no numpyro distribution", id="a number"),
        pytest.param({"x": dist.Poisson(3.0)}, "discrete", id="a discrete distribution"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(priors, match):
    with pytest.raises((ValueError, TypeError), match=f"{match}|Type-check error"):
        cal.Prior(priors)


@pytest.mark.parametrize(
    ("priors", "match"),
    [
        pytest.param({"x": dist.Normal(0.0, 1.0)}, "no parameter 'x'", id="of an unknown parameter"),
        pytest.param({}, "parameter 's' has no prior", id="of not all parameters"),
        pytest.param(
            {"theta": dist.Normal(0.0, 1.0).expand([2]), "s": dist.HalfNormal(1.0)}, "has shape", id="of another shape"
        ),
    ],
)
def test_priors_that_do_not_fit_the_problem_are_refused(priors, match):
    problem = cal.Problem(toys.Drift(), jnp.zeros(3), cal.losses.GaussianLogLikelihood("s"), steps=3)
    with pytest.raises(ValueError, match=match):
        cal.Prior.of(problem, priors)
