"""Simulations that are not finite: what they count as, against integrals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from commands import SMALL, run
from jaxtyping import Array, Float
from scipy import optimize
from scipy.special import expit

import calibrant as cal
from calibrant.inference import LearnProbability, LeaveOut, Penalise
from calibrant.report._failures import failure_maps, failure_rows

Z = jnp.array([[0.0], [1.0], [2.0], [3.0]])
LOSSES = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
FINITE = jnp.array([True, False, True, False])


class FailingParams(cal.Params):
    theta: Float[Array, ""] = cal.parameter(0.0, prior=dist.Normal(0.0, 1.0))


class Failing(cal.AbstractModel):
    """`theta`, or not a number with a probability that depends on `theta`."""

    slope: float = eqx.field(default=2.0, static=True)
    level: float = eqx.field(default=0.5, static=True)

    Params = FailingParams

    def init(self, params, rng):
        return params.theta

    def step(self, params, state, inputs_t, rng):
        odds = jax.lax.stop_gradient(self.slope * params.theta) + jnp.log(self.level / (1 - self.level))
        fails = rng.uniform("fails", ()) < jax.nn.sigmoid(odds)
        return jnp.where(fails, jnp.nan, state)

    def observe(self, params, state, inputs_t, rng):
        return state


def calibrated(failures, slope, level, estimator, updates=600, **how):
    problem = cal.Problem(Failing(slope, level), jnp.ones(1), cal.losses.MeanSquaredError(), steps=1)
    method = cal.GVI(
        simulations=100,
        max_updates=updates,
        learning_rate=2e-2,
        final_learning_rate=1e-3,
        evaluate_every=updates // 4,
        evaluation_simulations=1000,
        family=cal.posteriors.FullRankGaussian(),
        failures=failures,
        estimator=estimator,
        **how,
    )
    return cal.calibrate(problem, method=method, progress=False, throw=False)


def optimum(loss):
    """Mean and sd of the normal distribution that minimises E[loss] + KL from the prior, by quadrature."""
    x, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / np.sum(weights)

    def objective(v):
        m, s = v[0], np.exp(v[1])
        return np.sum(weights * loss(m + s * x)) + 0.5 * (s**2 + m**2 - 1) - v[1]

    m, log_s = optimize.minimize(objective, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6}).x
    return m, np.exp(log_s)


def moments(result):
    draws = np.asarray(result.sample(0, 20_000)["theta"])
    return np.array([np.mean(draws), np.std(draws)])


def test_failed_simulations_that_are_left_out_are_counted():
    a = LeaveOut().account(Z, LOSSES, FINITE)
    assert (float(a.loss), int(a.left_out)) == (2.0, 2)
    np.testing.assert_allclose(a.standard_error, 1.0, rtol=1e-6)
    nothing = LeaveOut().account(Z, LOSSES, jnp.zeros(4, bool))
    assert np.isnan(nothing.loss)


def test_a_penalty_counts_for_each_that_failed():
    a = Penalise(10.0).account(Z, LOSSES, FINITE)
    assert (float(a.loss), int(a.left_out)) == (6.0, 0)
    np.testing.assert_allclose(a.standard_error, np.std([1, 10, 3, 10], ddof=1) / 2, rtol=1e-6)
    # (penalty - mean of the others) (1_failed - share among the others) / n
    np.testing.assert_allclose(a.scores, 8 * np.array([-2 / 3, 2 / 3, -2 / 3, 2 / 3]) / 4, rtol=1e-6)


def test_a_learnt_probability_of_success_weighs_those_that_succeeded():
    a = LearnProbability().init(jax.random.key(0), 1).account(Z, LOSSES, FINITE)
    np.testing.assert_allclose(a.penalties, np.full(4, np.log1p(np.exp(-3.0))), rtol=1e-5)
    np.testing.assert_allclose(a.weights, [0.5, 0, 0.5, 0])


def test_success_is_learnt_from_a_sample_of_all_simulations_so_far():
    learner = LearnProbability(memory=50, passes=1).init(jax.random.key(0), 1)
    told = eqx.filter_jit(lambda f, key, z: f.told(key, z, z[:, 0] > 0))
    for i in range(100):
        learner = told(learner, jax.random.key(i), jnp.full((5, 1), float(i)))
    at, ok, count = learner.seen
    assert int(count) == 500
    np.testing.assert_array_equal(ok, at[:, 0] > 0)
    assert abs(np.mean(at) - 49.5) < 4 * np.std(np.arange(100)) / np.sqrt(50)  # of all, not of the last


@pytest.mark.parametrize("estimator", [cal.estimators.Pathwise(), cal.FlowScore()], ids=["pathwise", "flow-score"])
def test_penalties_move_the_posterior_as_the_integral_says(estimator):
    """The loss is (theta - 1)^2 where it succeeds; for a pathwise gradient the jump at a border is approximate, and
    there is no border here: success is a probability."""
    result = calibrated(Penalise(3.0), 2.0, 0.5, estimator)
    wanted = optimum(lambda t: (1 - expit(2 * t)) * (t - 1) ** 2 + expit(2 * t) * 3.0)
    if isinstance(estimator, cal.FlowScore):
        np.testing.assert_allclose(moments(result), wanted, atol=0.06)
    else:  # the derivative of P(success) (loss - its mean) is left out
        assert moments(result)[0] < optimum(lambda t: (t - 1) ** 2)[0] - 0.2
    assert result.result.successful
    assert result.n_failed > 0


@pytest.mark.slow
def test_failures_that_are_as_likely_everywhere_do_not_move_the_posterior():
    """Success is as probable everywhere: the posterior is that of a model which never fails."""
    wanted = optimum(lambda t: (t - 1) ** 2)
    for failures in (LeaveOut(), LearnProbability()):
        result = calibrated(failures, 0.0, 0.4, cal.estimators.Pathwise())
        np.testing.assert_allclose(moments(result), wanted, atol=0.06)
        assert 0.38 < result.n_failed / result.n_simulations < 0.42


def test_the_learnt_probability_of_success_is_part_of_the_likelihood():
    result = calibrated(LearnProbability(), 3.0, 0.5, cal.estimators.Pathwise(), updates=700)
    wanted = optimum(lambda t: (t - 1) ** 2 - np.log(expit(-3 * t)))
    np.testing.assert_allclose(moments(result), wanted, atol=0.08)
    left_out = calibrated(LeaveOut(), 3.0, 0.5, cal.estimators.Pathwise(), max_failed_fraction=1.0)
    assert abs(moments(left_out)[0] - 2 / 3) > 0.3  # that of a model which never fails: leaving out is not neutral


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            'failures = "ignore"',
            'give "leave-out", "learn" or { penalty = 100.0 }, a loss',
            id="an unknown treatment of failures",
        ),
        pytest.param("failures = { penalty = 1.0, other = 2 }", "give", id="a penalty and something else"),
        pytest.param("max_failed_fraction = 1.5", "less than or equal to 1", id="more failures than simulations"),
    ],
)
def test_a_configuration_is_refused_that_asks_for(line, message, here, monkeypatch, capsys):
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }") + line + "\n")
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml")
    assert code == 2
    assert message in err


def test_a_learnt_probability_that_may_be_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        LearnProbability(floor=0.0)


def test_where_simulations_fail_is_mapped():
    """Here where theta > 0."""
    result = calibrated(LeaveOut(), 1000.0, 0.5, cal.estimators.Pathwise(), updates=40, max_failed_fraction=1.0)
    (found,) = failure_maps(result)
    assert result.n_values == 4000
    np.testing.assert_allclose(np.mean(found.share), result.n_failed / result.n_values, atol=0.02)
    np.testing.assert_array_equal(found.share[found.edges[1:] < 0], 0)
    np.testing.assert_array_equal(found.share[found.edges[:-1] > 0], 1)
    (row,) = failure_rows([found])
    assert row[0] == "theta"
    assert (row[2], row[4]) == ("100.0%", "0.0%")
