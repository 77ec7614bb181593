"""Brock and Hommes with its tractable likelihood: the flow is the posterior that NUTS finds."""

import dataclasses
import os
from pathlib import Path

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

import calibrant as cal

REFERENCE = Path(os.environ.get("CALIBRANT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "brock_hommes"
NAMES = ("g2", "b2", "g3", "b3")
pytestmark = [pytest.mark.slow, pytest.mark.optimised]


def problem_of(prices):
    model = cal.models.BrockHommesForecast()
    inputs = model.lagged(jnp.asarray(prices, dtype=float))
    return cal.Problem(model, prices, cal.losses.GaussianLogLikelihood(model.noise), inputs=inputs)


def method_of(weight, schedule):
    return cal.GVI(
        weight=weight,
        simulations=20,
        optimiser=cal.inference.default_optimiser(schedule),
        family=cal.posteriors.CouplingSplineFlow(),
    )


def flow_draws(problem, n=2000, first=600, then=3000):
    """A first stage at a large weight keeps the flow out of poor optima."""
    prior = cal.Prior.of(problem)
    wide, exact = (
        method_of(100.0, optax.constant_schedule(5e-3)),
        method_of(1.0, optax.cosine_decay_schedule(3e-3, then, 0.02)),
    )
    state, _ = wide.step(problem, wide.init(problem, prior, 1), first)
    fresh = exact.init(problem, prior, 1)
    state = dataclasses.replace(fresh, posterior=state.posterior, update=state.update)
    state, _ = exact.step(problem, state, then)
    draws = state.posterior.sample(3, n)
    return np.stack([np.asarray(draws[name]) for name in NAMES], axis=1)


def nuts_draws(problem, n=4000):
    prior = cal.Prior.of(problem)

    def log_density(z):
        values = {name: x[None] for name, x in prior.constrain(z).items()}
        return prior.log_base(z) - cal.expect(problem, values, seeds=cal.seeds(0, (1, 1))).losses[0]

    start = prior.unconstrain({"g2": jnp.array(0.9), "b2": jnp.array(0.2), "g3": jnp.array(0.9), "b3": jnp.array(-0.2)})
    adapt = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = adapt.run(jax.random.key(0), start, num_steps=1000)
    kernel = blackjax.nuts(log_density, **parameters).step

    def body(state, key):
        state, _ = kernel(key, state)
        return state, state.position

    _, z = jax.lax.scan(body, state, jax.random.split(jax.random.key(1), n))
    values = jax.vmap(prior.constrain)(z[::2])
    return np.stack([np.asarray(values[name]) for name in NAMES], axis=1)


def check(flow, truth):
    means, sds = truth.mean(0), truth.std(0)
    shift = np.abs(flow.mean(0) - means) / sds
    ratio = flow.std(0) / sds
    n = min(len(flow), len(truth))
    x = np.concatenate([flow[:n], truth[:n]])
    x = (x - x.mean(0)) / x.std(0)
    y = np.repeat([0, 1], n)
    classifier = MLPClassifier((40, 40), max_iter=300, early_stopping=True, random_state=0)
    accuracy = cross_val_score(classifier, x, y, cv=5).mean()
    print(f"means {means}, sds {sds}, shift {shift}, ratio {ratio}, two-sample {accuracy:.3f}")
    assert np.all(shift <= 0.2)
    assert np.all(np.abs(ratio - 1) <= 0.15)
    assert accuracy <= 0.58


def test_the_flow_finds_the_posterior_that_nuts_finds():
    market = cal.models.BrockHommes(None)
    problem = problem_of(np.asarray(cal.simulate(market, market.Params(), seed=1005).outputs))
    check(flow_draws(problem), nuts_draws(problem))


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published reference posterior is not at hand")
def test_the_flow_finds_the_published_posterior():
    problem = problem_of(np.loadtxt(REFERENCE / "smooth_observed.txt"))
    check(flow_draws(problem, 1000), np.loadtxt(REFERENCE / "smooth_reference_posterior.txt"))
