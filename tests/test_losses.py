"""Losses against their definitions, and what they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import LOSS_DATA, LOSSES
from scipy import stats

import calibrant as cal

L = cal.losses
SIMULATIONS = np.random.default_rng(0).gamma(4.0, 1.0, size=(5, 6))


def value(loss, simulations=SIMULATIONS, data=LOSS_DATA, **params):
    return float(loss(jnp.asarray(simulations), jnp.asarray(data), {k: jnp.asarray(v) for k, v in params.items()}))


#: All but functions of a user's, which do with gaps and shapes what the user says.
OWN = {name: loss for name, loss in LOSSES.items() if not isinstance(loss, L.CustomLoss)}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_finite_has_a_finite_gradient_and_is_a_mean_over_simulations(loss):
    assert np.isfinite(value(loss))
    gradient = jax.grad(lambda x: loss(x, jnp.asarray(LOSS_DATA), {}))(jnp.asarray(SIMULATIONS))
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() > 0
    if loss.per_simulation:
        each = [value(loss, SIMULATIONS[i : i + 1]) for i in range(5)]
        np.testing.assert_allclose(value(loss), np.mean(each), rtol=1e-5)
    # Simulations equal to the data are finite in value and gradient too.
    same = jnp.broadcast_to(jnp.asarray(LOSS_DATA), (max(2, loss.min_replicates), 6))
    assert np.all(np.isfinite(jax.grad(lambda x: loss(x, jnp.asarray(LOSS_DATA), {}))(same)))


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_what_was_not_observed_does_not_count_or_is_refused_in_one_sentence(loss):
    blank = LOSS_DATA.copy()
    blank[2] = np.nan
    changed = SIMULATIONS.copy()
    changed[:, 2] = 999.0
    holds_data = loss.with_data(2 * LOSS_DATA) is not loss
    try:
        loss, refusal = loss.with_data(blank), None
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert value(loss, data=blank) == value(loss, changed, data=blank)
    else:
        assert holds_data
        assert "without gaps" in refusal
        assert ". " not in refusal


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_simulations_of_another_shape_than_the_data_are_refused(loss):
    with pytest.raises(ValueError, match="equal shape"):
        value(loss, SIMULATIONS[:, :5])


def test_likelihoods_equal_scipy():
    x, y = SIMULATIONS, LOSS_DATA
    expected = -stats.norm(x, 1.5).logpdf(y).sum(1)
    np.testing.assert_allclose(value(L.GaussianLogLikelihood(1.5)), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(value(L.GaussianLogLikelihood("s"), s=1.5), expected.mean(), rtol=1e-5)
    marginal = -np.log(np.mean(np.exp(-expected)))
    np.testing.assert_allclose(value(L.MarginalLikelihood(L.GaussianLogLikelihood(1.5))), marginal, rtol=1e-4)
    poisson = -stats.poisson(x).logpmf(y).sum(1).mean()
    np.testing.assert_allclose(value(L.PoissonLogLikelihood()), poisson, rtol=1e-5)
    k = 4.0
    nb = -stats.nbinom(k, k / (k + x)).logpmf(y).sum(1).mean()
    np.testing.assert_allclose(value(L.NegativeBinomialLogLikelihood(k)), nb, rtol=1e-4)


TESTED, POSITIVE = np.array([50.0, 0, 200]), np.array([5.0, 0, 60])
SHARES = np.where(TESTED > 0, POSITIVE / np.maximum(TESTED, 1), np.nan)
SIMULATED_SHARES = np.array([[0.08, 0.2, 0.25], [0.1, 0.2, 0.4]])


def test_the_binomial_likelihood_equals_scipy():
    x = SIMULATED_SHARES
    p = 0.9 * x + 0.02 * (1 - x)
    expected = -stats.binom(TESTED, p).logpmf(POSITIVE).sum(1).mean()
    # Numbers tested may go on after the data.
    loss = L.BinomialLogLikelihood([*TESTED, 100], sensitivity="s", specificity=0.98)
    np.testing.assert_allclose(value(loss, x, SHARES, s=0.9), expected, rtol=1e-4)
    assert loss.parameters == ("s",)
    loss.check(SHARES)


@pytest.mark.parametrize(
    ("share", "match"), [pytest.param(-0.1, "at least 0", id="below 0"), pytest.param(1.1, "at most 1", id="above 1")]
)
def test_an_observed_share_that_is_none_is_refused(share, match):
    with pytest.raises(ValueError, match=match):
        L.BinomialLogLikelihood(TESTED).check(np.array([share]))


def test_fewer_numbers_tested_than_times_are_refused():
    with pytest.raises(ValueError, match="2 numbers tested for 3 times"):
        value(L.BinomialLogLikelihood([1.0, 2.0]), SIMULATED_SHARES, SHARES)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda: L.BinomialLogLikelihood([0.0]), "numbers tested", id="a binomial of nobody tested"),
        pytest.param(
            lambda: L.BinomialLogLikelihood([-1.0, 2.0]), "numbers tested", id="a binomial of fewer than nobody"
        ),
        pytest.param(
            lambda: L.BinomialLogLikelihood([1.0], sensitivity=1.5), "sensitivity", id="a sensitivity above 1"
        ),
        pytest.param(lambda: L.Streams({}), "at least one", id="no stream"),
        pytest.param(
            lambda: L.MaximumMeanDiscrepancy([1.0, np.nan, 2.0]), "without gaps", id="a discrepancy from data with gaps"
        ),
    ],
)
def test_an_impossible_loss_is_refused_when_it_is_made(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_noise_of_the_binomial_is_that_of_the_number_tested():
    x = jnp.full((20_000,), 0.3)
    tested = np.tile([40.0, 0.0], 10_000)  # where nobody was tested, as if the median number were
    draws = np.asarray(L.BinomialLogLikelihood(tested).observe(jax.random.key(0), x, {}))
    assert abs(draws.mean() - 0.3) <= 4 * np.sqrt(0.3 * 0.7 / 40 / len(x))
    for part in (draws[0::2], draws[1::2]):
        np.testing.assert_allclose(part.var(), 0.3 * 0.7 / 40, rtol=0.08)


def test_squared_errors_equal_their_formulas():
    x, y = SIMULATIONS, LOSS_DATA
    np.testing.assert_allclose(value(L.MeanSquaredError()), np.mean((x - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(value(L.MeanSquaredError(2.0)), np.mean((x - y) ** 2) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        value(L.LogMeanSquaredError()), np.mean((np.log10(x + 1) - np.log10(y + 1)) ** 2), rtol=1e-4
    )
    np.testing.assert_allclose(value(L.SquaredErrorOfMean()), np.mean((x.mean(0) - y) ** 2), rtol=1e-5)


def test_scores_equal_their_formulas():
    x, y = SIMULATIONS, LOSS_DATA
    n = len(x)
    between = np.linalg.norm(x[:, None] - x[None], axis=-1)
    energy = np.linalg.norm(x - y, axis=1).mean() - between.sum() / (2 * n * (n - 1))
    np.testing.assert_allclose(value(L.EnergyScore()), energy, rtol=1e-5)
    pooled, h = x.ravel(), np.median(np.abs(y[:, None] - y[None])[np.triu_indices(6, 1)])

    def k(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2) / (2 * h**2))

    def off(m):
        return (m.sum() - np.trace(m)) / (len(m) * (len(m) - 1))

    expected = off(k(pooled, pooled)) + off(k(y, y)) - 2 * k(pooled, y).mean()
    np.testing.assert_allclose(value(L.MaximumMeanDiscrepancy(y)), expected, rtol=1e-4, atol=1e-6)


def test_the_discrepancy_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(1)
    values = [
        value(L.MaximumMeanDiscrepancy(rng.normal(size=30), bandwidth=1.0), rng.normal(size=(1, 30)), np.zeros(30))
        for _ in range(300)
    ]
    assert abs(np.mean(values)) <= 4 * np.std(values) / np.sqrt(300)


def test_observation_noise_has_the_right_moments():
    x = jnp.full((20_000,), 10.0)
    key = jax.random.key(0)
    for loss, variance in (
        (L.GaussianLogLikelihood("s"), 4.0),
        (L.PoissonLogLikelihood(), 10.0),
        (L.NegativeBinomialLogLikelihood(5.0), 10 + 100 / 5),
    ):
        draws = np.asarray(loss.observe(key, x, {"s": jnp.array(2.0)}))
        assert abs(draws.mean() - 10) <= 4 * np.sqrt(variance / len(x))
        np.testing.assert_allclose(draws.var(), variance, rtol=0.08)


STREAMS = L.Streams({"a": L.MeanSquaredError(), "b": L.GaussianLogLikelihood("s")}, {"a": 2.0})
OF_STREAMS = {"a": SIMULATIONS, "b": SIMULATIONS, "c": SIMULATIONS}


def test_a_loss_of_streams_is_their_weighted_sum():
    got = float(STREAMS(OF_STREAMS, {"a": LOSS_DATA, "b": LOSS_DATA}, {"s": jnp.array(1.5)}))
    np.testing.assert_allclose(got, 2 * value(L.MeanSquaredError()) + value(L.GaussianLogLikelihood(1.5)), rtol=1e-5)
    assert STREAMS.parameters == ("s",)


def test_data_without_a_stream_that_has_a_loss_are_refused():
    with pytest.raises(ValueError, match="the data has"):
        STREAMS(OF_STREAMS, {"a": LOSS_DATA}, {"s": jnp.array(1.5)})
