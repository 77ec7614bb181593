"""The health of gradients, on models whose gradients are known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import toys

import calibrant as cal
from calibrant.diagnostics import (
    Candidate,
    GradientHealth,
    Measurement,
    Moments,
    advise,
    advised,
    described,
    gradients,
    gradients_figure,
    summary,
)
from calibrant.diagnostics._advice import best


class Reversed(cal.estimators.Pathwise):
    """The wrong sign."""

    def losses(self, problem, run, values, seeds):
        losses, trajectories = super().losses(problem, run, values, seeds)
        return 2 * jax.lax.stop_gradient(losses) - losses, trajectories


class Tripled(cal.estimators.Pathwise):
    def losses(self, problem, run, values, seeds):
        losses, trajectories = super().losses(problem, run, values, seeds)
        return 3 * losses - 2 * jax.lax.stop_gradient(losses), trajectories


def drifting(method=None, **kwargs):
    """A smooth model: differences and the derivative agree to second order."""
    problem = cal.Problem(toys.Drift(), 0.5 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)
    prior = cal.Prior.of(problem)
    method = cal.GVI(simulations=4) if method is None else method
    return gradients(problem, prior, method, points=3, repeats=4, **kwargs)


def costing_simulations(health):
    """Every simulation costs the same: times of so small a model are of the machine."""
    measured = tuple(dataclasses.replace(m, forward_runs=float(m.simulations)) for m in health.measurements)
    return dataclasses.replace(health, measurements=measured)


def test_good_gradients_are_called_good():
    health = drifting()
    assert health.names == ("theta",)
    ratio, _ = health.ratios(health.configured)
    np.testing.assert_allclose(ratio, 1.0, atol=1e-3)  # quadratic in theta: differences are exact but for rounding
    assert np.all(health.identified)
    assert health.alignment(health.configured) > 0.999
    assert any("good" in sentence for sentence in advise(costing_simulations(health)))
    np.testing.assert_allclose(health.growth, np.arange(1, 9), rtol=1e-5)  # d x_t / d theta = t


def test_a_wrong_sign_is_named_and_a_remedy_given():
    health = drifting(cal.GVI(simulations=4, estimator=Reversed()))
    text = " ".join(advise(costing_simulations(health)))
    assert "theta has the wrong sign" in text
    assert "Use straight-through" in text


def test_a_gradient_of_the_wrong_size_is_named():
    assert "theta is more than twice too large" in " ".join(advise(drifting(cal.GVI(estimator=Tripled()))))


def test_a_parameter_that_the_horizon_cuts_is_named():
    """`start` of this model acts through the initial state alone."""
    inputs = np.sin(np.arange(6.0))
    model = toys.Lags()
    data = cal.simulate(model, model.default_params, seed=5, inputs=inputs).outputs
    loss = cal.losses.Streams({"y": cal.losses.MeanSquaredError()})
    problem = cal.Problem(model, {"y": data["y"]}, loss, inputs=inputs)
    prior = cal.Prior({"a": dist.Normal(0.7, 0.3), "start": dist.Normal(0.5, 2.0)})
    method = cal.GVI(horizon=cal.SlidingHorizon(0))
    health = gradients(problem, prior, method, points=4, repeats=4, others=[])
    text = " ".join(advise(health))
    assert "start is zero" in text
    assert "`keep`" in text
    kept = cal.GVI(horizon=cal.SlidingHorizon(0, keep=("start",)))
    assert "is zero" not in " ".join(advise(gradients(problem, prior, kept, points=4, repeats=4, others=[])))


@pytest.mark.slow
def test_straight_through_is_found_biased_in_households_and_the_controlled_score_is_not():
    """In households straight-through is too large; differences and the controlled score agree."""
    model = cal.models.SIR.small_world(100)
    loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x["recovered"][:, -1]) / 100, per_simulation=True)
    data = {"infected": np.zeros(15), "recovered": np.zeros(15)}
    problem = cal.Problem(model, data, loss, params=model.Params(initial=5), steps=15)
    prior = cal.Prior({"beta": dist.LogNormal(-0.7, 0.3), "gamma": dist.LogNormal(-1.6, 0.3)})
    controlled = Candidate("controlled", cal.estimators.ControlledScore(), replicates=32)
    health = gradients(problem, prior, cal.GVI(), points=2, repeats=100, others=[controlled])
    assert [row["candidate"] for row in summary(health)][1:] == ["controlled", "central differences"]
    ratio, error = health.ratios(health.measurements[1])
    assert np.all(np.abs(ratio - 1) < 4 * error + 0.05)
    biased, error = health.ratios(health.configured)
    assert biased[0] > 1 + 3 * error[0]
    figure = gradients_figure(health)
    assert len(figure.axes) == 3


def invented(cosine, noise, runs, length=1.0):
    """A gradient in two coordinates at two points, known well, beside differences along the first."""
    mean = length * np.tile([cosine, np.sqrt(1 - cosine**2)], (2, 1))
    moments = Moments(mean, 1e-6 * mean, np.full((2, 2), np.sqrt(noise / 2)))
    candidate = Candidate(f"{cosine}", cal.estimators.Pathwise())
    return Measurement(candidate, moments, moments, length * cosine, 1, runs, 0, 32)


def test_a_gradient_of_noise_alone_is_given_no_direction():
    """A cosine of a mean that is nothing but noise would be anything from -1 to 1, and is not given."""
    rng = np.random.default_rng(0)
    reference = invented(1.0, 0.01, 50.0)
    for _ in range(20):
        noise = Moments.of(rng.normal(size=(2, 32, 2)))
        candidate = Measurement(Candidate("noise", cal.estimators.Pathwise()), noise, noise, 1.0, 1, 1.0, 0, 64)
        health = GradientHealth(("a", "b"), (candidate, reference), np.ones(3), 5, 1.0)
        assert np.isnan(health.alignment(candidate))
        assert best(health) is reference
        assert "too noisy to have a direction" in " ".join(advise(health))


def test_the_advised_method_is_what_the_sentence_says():
    """What the sentence says, and no more than that; differences are advised as a correction."""
    method = cal.GVI(simulations=4, estimator=Reversed(), max_updates=7)
    new = advised(method, costing_simulations(drifting(method)))
    assert new == cal.GVI(simulations=4, estimator=cal.estimators.Pathwise(), max_updates=7)
    astray, reference = invented(0.3, 0.01, 1.0), invented(1.0, 0.01, 50.0)
    health = GradientHealth(("a", "b"), (astray, reference), np.ones(3), 5, 1.0)
    assert 'estimator = "corrected"' in " ".join(advise(health))
    assert advised(method, health).estimator == cal.Corrected()
    outside = dataclasses.replace(health, correctable=False)
    assert 'estimator = "corrected"' not in " ".join(advise(outside))
    assert advised(method, outside).estimator == cal.FiniteDifferences()
    good = GradientHealth(("a", "b"), (invented(1.0, 0.01, 1.0), reference), np.ones(3), 5, 1.0)
    assert advised(method, good) is method


def test_a_gradient_that_is_corrected_is_not_judged_by_its_bias():
    method = cal.GVI(simulations=4, estimator=cal.Corrected(Reversed()))
    health = drifting(method)
    assert "not yet corrected" in health.configured.candidate.name
    (sentence,) = advise(health)
    assert "takes the bias away" in sentence
    assert advised(method, health) is method
    assert health.correctable
    assert not drifting(cal.GVI(simulations=1)).correctable  # of one parameter at one value: one difference an update


def test_every_parameter_has_the_mean_bias_ratio_and_variance_of_its_gradient():
    health = drifting(cal.GVI(estimator=Tripled()))
    (row,) = health.by_parameter(health.configured)
    mine, reference = health.configured.raw.mean, health.reference.raw.mean
    assert row["parameter"] == "theta"
    assert row["mean"] == pytest.approx(np.mean(mine))
    assert row["bias"] == pytest.approx(np.mean(mine - reference))
    assert row["ratio"] == pytest.approx(3.0, rel=1e-3)
    assert row["variance"] == pytest.approx(np.mean(health.configured.raw.sd**2))
    told = described(health)
    assert told["candidates"][0]["by_parameter"][0]["bias"] == row["bias"]
    assert len(told["growth_by_step"]) == 8
    json.dumps(told, allow_nan=False)


def test_the_estimator_with_most_progress_for_its_cost_is_advised():
    """By bias, noise and cost together: noise averages out over some updates, bias does not, and work is limited."""

    def chosen(*measured):
        health = GradientHealth(("a", "b"), (*measured, invented(1.0, 0.01, 50.0)), np.ones(3), 5, 1.0)
        return best(health), health

    biased, sound = invented(0.82, 0.01, 2.0), invented(0.98, 0.2, 2.0)
    assert chosen(biased, sound)[0] is sound
    noisy = invented(0.98, 100.0, 2.0)
    assert chosen(biased, noisy)[0] is biased
    dear = invented(0.98, 0.2, 10.0)
    assert chosen(biased, dear)[0] is biased
    astray = invented(0.5, 0.0, 1.0)
    choice, health = chosen(astray)
    assert choice is health.reference
    short = invented(0.98, 0.0, 1.0, length=0.1)  # leaves the posterior near the prior
    assert chosen(biased, short)[0] is biased
    assert health.progress(sound) == pytest.approx(0.98 / np.sqrt(1 + 0.2 / 50) / 2, rel=1e-4)


class SometimesEnormous(cal.estimators.Pathwise):
    """Right but for one gradient in sixteen, which is a million times as long and points the other way."""

    def losses(self, problem, run, values, seeds):
        losses, trajectories = super().losses(problem, run, values, seeds)
        factor = jnp.where(seeds[:, 0, 1] % 16 == 0, -1e6, 1.0)
        return jax.lax.stop_gradient(losses) * (1 - factor) + factor * losses, trajectories


def test_a_few_enormous_gradients_do_not_decide_the_direction():
    """They do in the mean, and not in a calibration, which clips them."""
    problem = cal.Problem(toys.Drift(), 2.0 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)
    method = cal.GVI(simulations=4, estimator=SometimesEnormous())
    health = gradients(problem, cal.Prior.of(problem), method, points=4, repeats=64)
    mine, sound = health.configured, health.measurements[1]
    assert np.sum(mine.raw.mean * health.reference.raw.mean) < 0
    assert health.alignment(mine) > 0.9
    assert mine.length == pytest.approx(1.0, abs=0.05)
    assert mine.noise > sound.noise
    assert health.alignment(sound) > 0.999
    assert sound.length == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_a_temperature_is_measured_where_it_starts_beside_a_low_one():
    model = cal.models.SIR.small_world(100)
    loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x["recovered"][:, -1]) / 100, per_simulation=True)
    data = {"infected": np.zeros(15), "recovered": np.zeros(15)}
    problem = cal.Problem(model, data, loss, params=model.Params(initial=5), steps=15)
    prior = cal.Prior({"beta": dist.LogNormal(-0.7, 0.3)})
    falling = cal.GumbelSoftmax(optax.linear_schedule(1.0, 0.1, 100))
    method = cal.GVI(estimator=cal.estimators.Pathwise(falling))
    health = gradients(problem, prior, method, points=2, repeats=40)
    names = [row["candidate"] for row in summary(health)]
    assert "Gumbel-softmax at temperature 0.1" in names
    assert "straight-through, full horizon" in names
    hot, cold = (health.ratios(m)[0][0] for m in health.measurements[:2])
    assert hot > 2 > cold
    assert "beta is more than twice too large" in " ".join(advise(health))


def test_non_finite_gradients_are_counted():
    def loss(simulations, data, params):
        return jnp.mean((simulations - data) ** 2) + jnp.where(params["theta"] > 0, 0.0, jnp.nan)

    problem = cal.Problem(toys.Drift(), np.arange(1.0, 5.0), cal.losses.CustomLoss(loss), steps=4)
    health = gradients(problem, cal.Prior.of(problem), cal.GVI(), points=6, repeats=4)
    assert 0 < health.configured.failed < health.configured.count
    assert any("not finite" in sentence for sentence in advise(health))


def test_gradients_at_one_point_are_refused():
    problem = cal.Problem(toys.Drift(), np.arange(1.0, 4.0), cal.losses.MeanSquaredError(), steps=3)
    with pytest.raises(ValueError, match="at least 2 points"):
        gradients(problem, cal.Prior.of(problem), cal.GVI(), points=1)
