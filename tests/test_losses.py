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


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_contract(loss):
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


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("mmd", "mmd-lags", "function")])
def test_blanks_do_not_count(name):
    blank = LOSS_DATA.copy()
    blank[2] = np.nan
    changed = SIMULATIONS.copy()
    changed[:, 2] = 999.0
    assert value(LOSSES[name], data=blank) == value(LOSSES[name], changed, data=blank)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "function"])
def test_wrong_shapes_are_refused(name):
    with pytest.raises(ValueError, match="equal shape"):
        value(LOSSES[name], SIMULATIONS[:, :5])


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


def test_the_binomial_equals_scipy():
    tested, k = np.array([50.0, 0, 200]), np.array([5.0, 0, 60])
    share = np.where(tested > 0, k / np.maximum(tested, 1), np.nan)
    x = np.array([[0.08, 0.2, 0.25], [0.1, 0.2, 0.4]])
    p = 0.9 * x + 0.02 * (1 - x)
    expected = -stats.binom(tested, p).logpmf(k).sum(1).mean()
    # Numbers tested may go on after the data.
    loss = L.BinomialLogLikelihood([*tested, 100], sensitivity="s", specificity=0.98)
    np.testing.assert_allclose(value(loss, x, share, s=0.9), expected, rtol=1e-4)
    assert loss.parameters == ("s",)
    loss.check(share)
    for wrong, data in ((-0.1, "at least 0"), (1.1, "at most 1")):
        with pytest.raises(ValueError, match=data):
            loss.check(np.array([wrong]))
    with pytest.raises(ValueError, match="2 numbers tested for 3 times"):
        value(L.BinomialLogLikelihood([1.0, 2.0]), x, share)
    for tested in ([0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="numbers tested"):
            L.BinomialLogLikelihood(tested)
    with pytest.raises(ValueError, match="sensitivity"):
        L.BinomialLogLikelihood([1.0], sensitivity=1.5)


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


def test_discrepancy_is_unbiased_for_equal_distributions():
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


def test_streams():
    loss = L.Streams({"a": L.MeanSquaredError(), "b": L.GaussianLogLikelihood("s")}, {"a": 2.0})
    simulations = {"a": SIMULATIONS, "b": SIMULATIONS, "c": SIMULATIONS}
    data = {"a": LOSS_DATA, "b": LOSS_DATA}
    got = float(loss(simulations, data, {"s": jnp.array(1.5)}))
    np.testing.assert_allclose(got, 2 * value(L.MeanSquaredError()) + value(L.GaussianLogLikelihood(1.5)), rtol=1e-5)
    assert loss.parameters == ("s",)
    with pytest.raises(ValueError, match="the data has"):
        loss(simulations, {"a": LOSS_DATA}, {"s": jnp.array(1.5)})
    with pytest.raises(ValueError, match="at least one"):
        L.Streams({})
    with pytest.raises(ValueError, match="without gaps"):
        L.MaximumMeanDiscrepancy([1.0, np.nan, 2.0])
