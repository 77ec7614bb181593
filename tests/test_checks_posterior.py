"""Predictive checks, importance weights, identifiability and sensitivities, against closed forms."""

import jax
import jax.numpy as jnp
import lines
import numpy as np
import numpyro.distributions as dist
import pytest
from registry import LOSS_DATA, LOSSES
from scipy import stats

import calibrant as cal
from calibrant import checks


def total(loss):
    """Sum or integral of exp(-loss) over one observation; infinite where exp(-loss) does not vanish far away."""
    x = jnp.array([[2.3]]) if loss.per_simulation else jnp.array([[2.3], [3.7], [9.1]])
    far = LOSS_DATA + 1e6
    if np.exp(-loss.with_data(far)(jnp.broadcast_to(x, (len(x), len(far))), jnp.asarray(far), {})) > 1e-3:
        return np.inf
    try:
        loss.check(np.array([-1.0]))
        lowest = -300.0
    except ValueError:
        lowest = 0.0
    drawn = loss.observe(jax.random.key(0), x[0], {})
    step = 1.0 if np.all(drawn == np.round(drawn)) else 0.01  # counts, or real numbers
    y = jnp.arange(lowest, 300.0, step)
    return step * np.sum(np.exp(-np.asarray(jax.vmap(lambda y: loss(x, y[None], {}))(y), float)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_a_likelihood_if_and_only_if_it_integrates_to_one_over_data(loss):
    assert loss.is_likelihood == (abs(total(loss) - 1) < 1e-3)


GAUSSIAN, SQUARES = cal.losses.GaussianLogLikelihood(1.5), cal.losses.MeanSquaredError()


@pytest.mark.parametrize(
    ("loss", "likelihood"),
    [
        pytest.param(cal.losses.Streams({"a": GAUSSIAN, "b": GAUSSIAN}), True, id="two likelihoods"),
        pytest.param(cal.losses.Streams({"a": GAUSSIAN, "b": SQUARES}, {"b": 0.0}), True, id="squares of weight 0"),
        pytest.param(cal.losses.Streams({"a": GAUSSIAN, "b": SQUARES}), False, id="squares beside a likelihood"),
        pytest.param(cal.losses.Streams({"a": GAUSSIAN, "b": GAUSSIAN}, {"b": 0.5}), False, id="half a likelihood"),
        pytest.param(cal.losses.Periods(GAUSSIAN, 2), True, id="a likelihood of periods"),
        pytest.param(cal.losses.MarginalLikelihood(SQUARES), False, id="squares over replicates"),
    ],
)
def test_a_loss_made_of_losses_is_a_likelihood_where_all_that_count_are_and_count_once(loss, likelihood):
    assert loss.is_likelihood == likelihood


def test_predictive_p_values_are_those_of_the_closed_form():
    """The mean of simulated data is normal, so its p-value is known."""
    it = lines.problem()
    y = np.asarray(it.data)
    seen = np.isfinite(y)
    mean, covariance = lines.exact(y)
    row = lines.DESIGN[seen].mean(axis=0)
    sd = np.sqrt(row @ covariance @ row + lines.SCALE**2 / seen.sum())
    right = stats.norm.sf((y[seen].mean() - row @ mean) / sd)
    result = checks.predictive_check(it, lines.posterior(it), draws=2000)
    at = result.names.index("mean")
    assert result.p[at] == pytest.approx(right, abs=4 * result.error[at])
    assert result.error[at] == pytest.approx(np.sqrt(right * (1 - right) / 2000), rel=0.1)
    assert result.surprising == ()
    assert "loss" in result.names


def test_a_summary_that_the_model_cannot_make_is_found():
    it = lines.problem()
    away = cal.Problem(it.model, it.data.at[0].set(7.0), it.loss)
    result = checks.predictive_check(away, lines.posterior(it), draws=500)
    assert {"loss", "largest", "standard deviation"} <= set(result.surprising)
    assert "larger than in simulations" in result.sentence()
    own = checks.predictive_check(away, lines.posterior(it), summaries={"first": lambda x: x[0]}, draws=500)
    assert own.names == ("loss", "first")
    assert own.p[1] == 0


def test_a_summary_that_observed_data_do_not_have_is_refused():
    it = lines.problem()
    with pytest.raises(ValueError, match="'gap' of the observed data is no finite number"):
        checks.predictive_check(it, lines.posterior(it), summaries={"gap": lambda x: x[lines.MISSING]})


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (1.3, 0.0), (1.0, 0.5)], ids=["exact", "wide", "shifted"])
def test_importance_weights_find_and_undo_what_was_done_to_a_posterior(width, shift):
    it = lines.problem()
    q = lines.posterior(it, width=width, shift=shift)
    result = checks.importance(it, q, draws=4000, replicates=1)
    error = 4 / np.sqrt(result.size)
    assert result.reliable
    assert result.noise == 0
    np.testing.assert_allclose(result.width, width, rtol=error)
    np.testing.assert_allclose(result.shift, shift / width, atol=error)
    mean, covariance = lines.exact(np.asarray(it.data))
    drawn = result.resampled(3000)
    corrected = np.stack([drawn[name] for name in ("level", "slope", "idle")], axis=1)
    np.testing.assert_allclose((corrected.mean(axis=0) - mean) / np.sqrt(np.diag(covariance)), 0, atol=error)
    assert (result.size > 3900) == (width == 1 and shift == 0)


def test_a_flow_that_misses_the_posterior_is_not_corrected():
    it = lines.problem()
    result = checks.importance(it, lines.posterior(it, width=0.4, shift=2.0), draws=1000, replicates=1)
    assert not result.reliable
    assert "cannot correct" in result.sentence()


def test_importance_weights_need_a_likelihood():
    it = lines.problem(cal.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="MeanSquaredError is no likelihood"):
        checks.importance(it, lines.posterior(it))


def test_importance_weights_are_right_where_the_likelihood_is_an_average_over_noise():
    """Noise inside the model, marginalised by replicates: the likelihood is normal with both variances."""
    inner = 0.5
    it = lines.problem(
        cal.losses.MarginalLikelihood(cal.losses.GaussianLogLikelihood(float(np.sqrt(lines.SCALE**2 - inner**2)))),
        noise=inner,
    )
    result = checks.importance(it, lines.posterior(it), draws=2000, replicates=256)
    assert result.reliable
    assert 0 < result.noise < 0.5
    np.testing.assert_allclose(result.width, 1, atol=4 / np.sqrt(result.size))
    np.testing.assert_allclose(result.shift, 0, atol=4 / np.sqrt(result.size))


def test_data_on_a_line_contract_what_they_constrain_and_nothing_else():
    it = lines.problem()
    result = checks.identifiability(it, lines.posterior(it), draws=20_000, simulations=2000, jacobians=2)
    _, covariance = lines.exact(np.asarray(it.data))
    np.testing.assert_allclose(result.contraction, 1 - np.diag(covariance), atol=0.03)
    right = 1 - np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(result.directions.contraction, right, atol=0.03)
    # A linear model under a standard normal prior: the information predicts the contraction.
    assert result.predicted is not None
    assert result.local is not None
    np.testing.assert_allclose(result.predicted.contraction, right, atol=0.03)
    assert result.predicted.label(2) == "1.00 idle"
    seen = np.isfinite(np.asarray(it.data))
    np.testing.assert_allclose(result.local["output"][seen], lines.DESIGN[seen], atol=1e-5)
    assert np.all(np.isnan(result.local["output"][~seen]))
    assert "idle" in result.sentence()


def test_a_prior_that_is_no_normal_has_no_contraction_in_any_direction():
    """A Dirichlet prior goes through numpyro's bijection; the prior itself has no contraction in any direction."""

    class SharesParams(cal.Params):
        shares: object = cal.parameter([0.2, 0.3, 0.5], prior=dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])))

    class Shares(lines.Line):
        Params = SharesParams

        def init(self, params, rng):
            return params.shares[0]

        def step(self, params, state, inputs_t, rng):
            return state

        def observe(self, params, state, inputs_t, rng):
            return state

    it = cal.Problem(Shares(), np.full(6, 0.2), cal.losses.GaussianLogLikelihood(10.0))
    prior = cal.Prior.of(it)
    method = cal.GVI(family=cal.posteriors.FullRankGaussian())
    result = checks.identifiability(it, method.init(it, prior, 0).posterior, jacobians=1)
    assert result.names == ("shares[0]", "shares[1]")
    np.testing.assert_allclose(result.directions.contraction, 0, atol=0.15)


def test_first_order_indices_of_a_line_are_those_of_the_closed_form():
    it = lines.problem(noise=0.5)
    result = checks.sensitivity(it, lines.posterior(it), runs=4000)
    seen = np.isfinite(np.asarray(it.data))
    by_point = lines.DESIGN[seen] ** 2
    variance = by_point.sum(axis=1) + 0.25
    right = by_point.sum(axis=0) / variance.sum()
    assert np.all(np.abs(result.first["output"] - right) < 4 * np.maximum(result.error["output"], 0.005))
    np.testing.assert_allclose(result.by_point["output"], by_point / variance[:, None], atol=0.08)
    assert result.noise["output"] == pytest.approx(0.25 * seen.sum() / variance.sum(), rel=0.1)


def test_first_order_indices_of_the_ishigami_function_are_the_published_ones():
    """The standard test of global sensitivities (Ishigami and Homma 1990): S = 0.3139, 0.4424, 0."""
    x = np.random.default_rng(0).uniform(-np.pi, np.pi, size=(8000, 3))
    y = np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])
    partial, variance = checks.first_order(x, y[:, None])
    np.testing.assert_allclose(partial[0] / variance[0], [0.3139, 0.4424, 0], atol=0.03)


def test_seen_through_its_flow_a_posterior_is_a_standard_normal():
    """Seen through its flow a posterior is a standard normal, and its prior is what the change of variables says."""
    from calibrant.checks._local import Through

    it = lines.problem()
    q = lines.posterior(it)
    learnt, own = Through(q, learnt=True), Through(q, learnt=False)
    u = jnp.array([0.3, -0.2, 1.0])
    values = own.constrain(u)
    np.testing.assert_allclose(own.unconstrain(values), u, atol=1e-5)
    assert learnt.log_prob(values) == pytest.approx(float(q.log_prob(values)), abs=1e-4)
    _, covariance = lines.exact(np.asarray(it.data))
    z = q.prior.unconstrain(values)
    assert own.log_base(u) == pytest.approx(
        float(stats.norm.logpdf(np.asarray(z)).sum() + 0.5 * np.linalg.slogdet(covariance)[1]), abs=1e-4
    )
    assert jax.tree.map(jnp.shape, learnt.sample(jax.random.key(0), 3)) == dict.fromkeys(
        ("idle", "level", "slope"), (3,)
    )
