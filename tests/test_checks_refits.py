"""Refits of synthetic data: against exact posteriors, and by what was done to the method."""

import dataclasses
import functools

import jax.numpy as jnp
import lines
import numpy as np
import pytest

import calibrant as cal
from calibrant import checks

METHOD = cal.GVI(simulations=20, kl_samples=100, max_updates=150, family=cal.posteriors.FullRankGaussian())
NEAR = checks.NearData(updates=120, learning_rate=3e-2)


@functools.cache
def refits(weight=1.0, where=NEAR, data_sets=60):
    it = lines.problem()
    refitter = checks.Refitter(it, lines.posterior(it), METHOD, where=where, data_sets=data_sets, at_once=data_sets)
    return refitter, refitter.refit(weight)


def test_refits_near_the_data_are_the_exact_posteriors():
    """The prior is the run's posterior, so the exact refit has the precision of both data sets."""
    refitter, result = refits()
    y = np.asarray(refitter.problem.data)
    _, covariance = lines.exact(y)
    seen = np.isfinite(y)
    assert np.all(np.isnan(np.asarray(refitter.problems.each.data)[:, ~seen]))
    both = np.linalg.inv(np.linalg.inv(covariance) + lines.DESIGN[seen].T @ lines.DESIGN[seen] / lines.SCALE**2)
    np.testing.assert_allclose(result.draws.std(axis=1).mean(axis=0), np.sqrt(np.diag(both)), rtol=0.06)
    data = np.asarray(refitter.problems.each.data)[:, seen]
    mean, _ = lines.exact(y)
    right = (both @ (np.linalg.inv(covariance) @ mean[:, None] + lines.DESIGN[seen].T @ data.T / lines.SCALE**2)).T
    off = (result.draws.mean(axis=1) - right) / np.sqrt(np.diag(both))
    assert np.sqrt(np.mean(off**2)) < 0.15
    np.testing.assert_allclose(result.prior_variance, np.diag(covariance), rtol=0.1)
    assert (result.asked, result.refused, result.failed, result.failed_simulations) == (60, 0, 0, 0)
    assert result.convergence is not None
    assert result.convergence.enough
    assert np.all(result.convergence.before[:2] > 0.4)
    assert "long enough" in result.convergence.sentence()


def test_right_refits_pass_and_a_wrong_weight_fails():
    check = refits()[1].calibration()
    assert check.passed
    assert [v.word for v in check.verdicts] == ["calibrated", "calibrated", "prior-dominated"]
    # A twentieth of the weight: the data count twenty times.
    narrow = refits()[0].refit(0.05, there_and_back=False).calibration()
    assert [v.word for v in narrow.verdicts][:2] == ["too narrow", "too narrow"]
    assert not narrow.passed


def test_refits_with_equal_seeds_give_equal_bits():
    refitter, result = refits()
    np.testing.assert_array_equal(refitter.refit(1.0, there_and_back=False).draws, result.draws)


def test_refits_from_the_prior_are_the_exact_posteriors():
    """Whole calibrations, each at a draw of the prior: the posterior's spread does not depend on the data."""
    it = lines.problem()
    method = dataclasses.replace(METHOD, learning_rate=3e-2, final_learning_rate=1e-3)
    result = checks.refit(it, lines.posterior(it), method, where=checks.PriorDraws(), data_sets=40, at_once=40)
    _, covariance = lines.exact(np.asarray(it.data))
    np.testing.assert_allclose(result.draws.std(axis=1).mean(axis=0), np.sqrt(np.diag(covariance)), rtol=0.08)
    assert result.calibration().passed
    assert result.convergence is not None
    assert result.convergence.enough


@pytest.mark.slow
def test_the_weight_at_which_intervals_cover_is_found():
    """`sum (x - y)^2 / n` has the exact posterior at w = 2 scale^2 / n, and twice or half of that is seen."""
    it = lines.problem(cal.losses.MeanSquaredError(), noise=lines.SCALE)
    seen = np.isfinite(np.asarray(it.data)).sum()
    right = 2 * lines.SCALE**2 / seen
    method = dataclasses.replace(METHOD, weight=right / 16)
    refitter = checks.Refitter(it, lines.posterior(it), method, where=NEAR, data_sets=100, at_once=100)
    search = checks.choose_weight(refitter, nominal=0.8, steps=6)
    assert search.steps[0].weight == pytest.approx(right / 16)
    assert search.steps[0].coverage < 0.75
    assert search.found.coverage == pytest.approx(0.8, abs=2.5 * search.found.error)
    assert right / 3 < search.weight < 3 * right
    assert "By parameter: level" in search.sentence()
    assert len(search.describe()["steps"]) == len(search.steps)
    assert not search.idle
    steps = tuple(dataclasses.replace(search.steps[0], weight=w) for w in (1.0, 20.0))
    unmoved = dataclasses.replace(search, steps=steps, bracket=None, weight=1.0)
    assert unmoved.idle
    assert "too few at every weight that was tried; widths hardly change" in unmoved.sentence()


def test_a_loss_that_cannot_be_rebuilt_for_other_data_is_refused():
    it = lines.problem()
    y = jnp.asarray(it.data)
    captured = cal.Problem(it.model, it.data, lambda x, data, params: jnp.nanmean((x - y) ** 2))
    with pytest.raises(ValueError, match="CustomLoss holds the data it was built from"):
        checks.Refitter(captured, lines.posterior(it), METHOD)


def test_refits_of_three_data_sets_are_refused():
    it = lines.problem()
    with pytest.raises(ValueError, match="data_sets"):
        checks.Refitter(it, lines.posterior(it), METHOD, data_sets=3)


def test_a_loss_that_holds_data_is_rebuilt_for_other_data():
    full = np.cumsum(np.ones(lines.STEPS))
    loss = cal.losses.MaximumMeanDiscrepancy(full, lags=2, bandwidth_factor=0.5)
    other = loss.with_data(3 * full)
    again = cal.losses.MaximumMeanDiscrepancy(3 * full, lags=2, bandwidth_factor=0.5)
    assert float(other.bandwidth) == pytest.approx(3 * float(loss.bandwidth), rel=1e-5)
    simulations = jnp.asarray(full)[None] ** 1.2
    assert float(other(simulations, 3 * full, {})) == float(again(simulations, 3 * full, {}))
    streams = cal.losses.Streams({"a": cal.losses.Periods(cal.losses.GaussianLogLikelihood(1.0), 2), "b": loss})
    inner = streams.with_data({"a": full, "b": 3 * full}).losses["b"]
    assert float(inner.bandwidth) == float(other.bandwidth)


def test_a_synthetic_problem_may_be_made_by_a_function_of_ones_own():
    """Data that are also inputs: `make` says how a synthetic problem is built."""
    from calibrant.checks._synthetic import with_data

    it = lines.problem()
    seen = []

    def make(problem, values, seed):
        seen.append(float(values["level"]))
        out = cal.simulate(problem.model, problem.with_values(values), seed=seed).outputs
        return with_data(problem, out + float(len(seen) % 2))

    refitter = checks.Refitter(it, lines.posterior(it), METHOD, where=NEAR, data_sets=10, make=make)
    assert len(seen) == 10
    assert refitter.problems.each.data.shape == (10, lines.STEPS)


def test_synthetic_problems_of_another_model_are_refused():
    it = lines.problem()

    def other(problem, values, seed):
        return cal.Problem(lines.Line(0.1), problem.data, problem.loss)

    with pytest.raises(ValueError, match="built differently"):
        checks.Refitter(it, lines.posterior(it), METHOD, data_sets=10, make=other)
