"""Ranks, envelopes and verdicts, on posteriors that are known and on what was done to them."""

import functools
import itertools

import numpy as np
import pytest

from calibrant import checks

DATA_SETS, DRAWS = 300, 999


@functools.cache
def conjugate(narrow=1.0, shift=0.0, dim=2):
    """`theta ~ N(0, I)`, `y = theta + noise` with correlated noise: exact normal posteriors, and what is done to them.

    Their draws, the truths, references from the prior, and the prior's variance.
    """
    rng = np.random.default_rng(5)
    noise = 0.15 * (np.eye(dim) + 0.8 * (1 - np.eye(dim)))
    truths = rng.normal(size=(DATA_SETS, dim))
    y = truths + rng.multivariate_normal(np.zeros(dim), noise, DATA_SETS)
    covariance = np.linalg.inv(np.eye(dim) + np.linalg.inv(noise))
    mean = y @ (covariance @ np.linalg.inv(noise)).T
    z = rng.multivariate_normal(np.zeros(dim), covariance, (DATA_SETS, DRAWS))
    draws = mean[:, None] + narrow * z + shift * np.sqrt(np.diag(covariance))
    return draws, truths, rng.normal(size=(DATA_SETS, dim)), np.ones(dim)


def checked(**how):
    draws, truths, references, variance = conjugate(**how)
    return checks.calibration(draws, truths, references, prior_variance=variance)


def test_the_exact_posterior_passes():
    result = checked()
    assert result.passed
    assert result.p > 0.01
    assert result.tarp.p > 0.01
    assert [v.word for v in result.verdicts] == ["calibrated"] * 2
    for v in result.verdicts:
        assert v.width.factor_interval[0] < 1 < v.width.factor_interval[1]
        assert all(low < level < high for level, (_, low, high) in v.coverage.items())
        # 1 - 0.1247 with this noise
        assert v.contraction == pytest.approx(
            1 - np.linalg.inv(np.eye(2) + np.linalg.inv([[0.15, 0.12], [0.12, 0.15]]))[0, 0], abs=0.01
        )


@pytest.mark.parametrize("dim", [1, 2, 4], ids=["1 parameter", "2 parameters", "4 parameters"])
@pytest.mark.parametrize(
    ("how", "word"),
    [({"narrow": 0.7}, "too narrow"), ({"narrow": 1.3}, "too wide"), ({"shift": 0.5}, "shifted")],
    ids=["narrow", "wide", "shifted"],
)
def test_a_posterior_that_was_made_wrong_fails(how, word, dim):
    result = checked(**how, dim=dim)
    assert result.p < 0.01
    assert result.tarp.p < 0.01
    assert [v.word for v in result.verdicts] == [word] * dim
    for v in result.verdicts:
        low, high = v.width.factor_interval
        assert 0.95 * low < how.get("narrow", 1.0) < 1.05 * high
        low, high = v.width.shift_interval
        assert low - 0.05 < how.get("shift", 0.0) < high + 0.05


def test_joint_coverage_sees_what_single_parameters_hide():
    draws, truths, references, _ = conjugate()
    rng = np.random.default_rng(0)
    independent = np.stack([rng.permuted(draws[:, :, i], axis=1) for i in range(2)], axis=-1)
    result = checks.calibration(independent, truths, references)
    assert result.p > 0.01
    assert result.tarp.p < 1e-6
    assert not result.passed


def test_a_posterior_that_repeats_the_prior_is_called_prior_dominated():
    rng = np.random.default_rng(0)
    draws, truths = rng.normal(size=(100, 99, 1)), rng.normal(size=(100, 1))
    result = checks.calibration(draws, truths, truths[::-1], prior_variance=np.ones(1))
    assert result.verdicts[0].word == "prior-dominated"


def test_the_probability_of_an_envelope_is_exact():
    """Against all ways in which 4 values fall between its points."""
    e = checks.envelope(4, 0.8)
    widths = np.diff(np.concatenate([[0.0], e.points, [1.0]]))
    inside = 0.0
    for cells in itertools.product(range(len(widths)), repeat=4):
        below = np.array([sum(c <= i for c in cells) for i in range(len(e.points))]) / 4
        if np.all((e.low <= below) & (below <= e.high)):
            inside += np.prod(widths[list(cells)])
    assert e.probability == pytest.approx(inside, abs=1e-12)
    assert inside >= 0.8


def test_an_envelope_holds_as_often_as_it_says():
    n, many = 120, 4000
    e = checks.envelope(n, 0.9)
    u = np.sort(np.random.default_rng(1).uniform(size=(many, n)), axis=1)
    below = np.stack([np.sum(u <= p, axis=1) for p in e.points], axis=1) / n
    share = np.mean(np.all((e.low <= below) & (below <= e.high), axis=1))
    assert e.probability == pytest.approx(share, abs=4 * np.sqrt(0.09 / many))
    assert 0.9 <= e.probability < 0.92


def test_the_p_value_agrees_with_the_envelope():
    rng = np.random.default_rng(2)
    for power in (1.0, 1.25, 1.4, 2.0):
        u = rng.uniform(size=80) ** power
        p = checks.envelope_p_value(u)
        for level in (0.5, 0.9, 0.99):
            e = checks.envelope(80, level)
            below = np.mean(u[:, None] <= e.points, axis=0)
            inside = bool(np.all((e.low <= below) & (below <= e.high)))
            # At most the probability that counts, being discrete, leave between `level` and the envelope's own.
            assert inside == (p > 1 - e.probability - 1e-9)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(3)
    tests = [checks.uniformity(rng.uniform(size=60)) for _ in range(300)]
    for name in ("location", "spread", "envelope"):
        p = np.array([getattr(t, name) for t in tests])
        for level in (0.05, 0.3):
            assert np.mean(p <= level) < level + 3 * np.sqrt(level / 300)
        assert np.mean(p <= 0.3) > 0.15
    assert np.mean([t.p <= 0.05 for t in tests]) <= 0.05 + 3 * np.sqrt(0.05 / 300)


def test_ranks_of_few_draws_and_of_ties_are_uniform():
    rng = np.random.default_rng(4)
    values = rng.integers(0, 3, size=(4000, 6)).astype(float)
    u = checks.ranks(values[:, 1:, None], values[:, :1], seed=1)[:, 0]
    assert checks.uniformity(u).p > 0.01
    assert checks.uniformity(checks.folded(u)).p > 0.01


def test_the_smallest_error_that_can_be_seen_is_seen_nine_times_in_ten():
    n, many, size = 100, 2000, 0.01
    least = checks.detectable(n, size=size, tests=2)
    s = np.random.default_rng(6).normal(size=(many, n))
    from scipy import stats

    low, high = stats.chi2.ppf([size / 4, 1 - size / 4], n)
    for factor, rejected in ((least.narrow, lambda x: x > high), (least.wide, lambda x: x < low)):
        found = np.mean(rejected(np.sum((s / factor) ** 2, axis=1)))
        assert found == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / many))
    found = np.mean(np.sqrt(n) * np.abs(np.mean(s + least.shift, axis=1)) > stats.norm.ppf(1 - size / 4))
    assert found == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / many))
    # and what is tested at 1% with 300 data sets leaves room for 30%
    assert 0.8 < checks.detectable(300, tests=24).narrow < 0.85
    assert checks.detectable(300, tests=24).wide < 1.25
    assert checks.detectable(300, tests=24).shift < 0.3


@pytest.mark.parametrize(
    ("draws", "truths", "message"),
    [
        pytest.param(np.zeros((5, 3)), np.zeros((5, 1)), "have shape", id="without an axis of parameters"),
        pytest.param(np.zeros((5, 3, 2)), np.zeros((5, 1)), "have shape", id="of more parameters than truths"),
        pytest.param(np.full((5, 3, 1), np.nan), np.zeros((5, 1)), "must be finite", id="not finite"),
        pytest.param(np.zeros((5, 1, 1)), np.zeros((5, 1)), "two draws", id="one of each posterior"),
    ],
)
def test_draws_that_are_no_draws_of_a_posterior_are_refused(draws, truths, message):
    with pytest.raises(ValueError, match=message):
        checks.ranks(draws, truths)


FIVE, TRUTHS = np.random.default_rng(0).normal(size=(5, 30, 1)), np.zeros((5, 1))


@pytest.mark.parametrize(
    ("check", "match"),
    [
        pytest.param(lambda: checks.calibration(FIVE, TRUTHS, TRUTHS), "10 data sets", id="five data sets"),
        pytest.param(lambda: checks.tarp(FIVE[:, :5], TRUTHS, TRUTHS), "10 draws a parameter", id="five draws"),
        pytest.param(lambda: checks.tarp(np.zeros((5, 30, 1)), TRUTHS, TRUTHS), "all the same", id="equal draws"),
        pytest.param(lambda: checks.uniformity(np.array([0.5, 1.5])), "between 0 and 1", id="a rank above 1"),
    ],
)
def test_a_check_is_refused_of(check, match):
    with pytest.raises(ValueError, match=match):
        check()
