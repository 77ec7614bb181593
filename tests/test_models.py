"""Models behave like what they claim to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import MODELS
from scipy import optimize

import calibrant as cal
from calibrant.models._epidemic import _smallest
from calibrant.networks import Incidence, random_groups


@pytest.mark.parametrize("name", MODELS)
def test_a_model_repeats_with_its_seed_stays_finite_and_has_priors_that_hold_its_defaults(name):
    model, kwargs = MODELS[name]
    with jax.numpy_dtype_promotion("strict"):
        first = cal.simulate(model, model.Params(), seed=1, **kwargs).outputs
        again = cal.simulate(model, model.Params(), seed=1, **kwargs).outputs
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))
        assert a.dtype in (jnp.float32, jnp.int32)
    for info in model.Params.describe().values():
        assert info.prior is None or np.all(np.isfinite(info.prior.log_prob(jnp.asarray(info.default))))


@pytest.mark.optimised
def test_the_final_size_of_an_sir_is_that_of_the_closed_form():
    """One well-mixed group: the attack rate of a large outbreak solves z = 1 - s0 exp(-R0 (z + i0))."""
    n, r0, first = 20_000, 2.0, 200.0
    model = cal.models.SIR(Incidence(np.zeros(n, int)), dt=0.1)
    params = model.Params(beta=0.4, gamma=0.2, initial=first)

    def attack(seed):
        out = cal.simulate(model, params, seed=seed, steps=1200).outputs
        return 1 - (n - out["infected"][-1] - out["recovered"][-1]) / n

    got = np.asarray(jax.vmap(attack)(cal.seeds(0, 8)))
    s0 = 1 - first / n
    # Chain-binomial steps of dt = 0.1 days have R0 = (beta dt) / (1 - exp(-gamma dt)) to first order
    effective = 0.4 * 0.1 / -np.expm1(-0.2 * 0.1)
    exact = optimize.brentq(lambda z: z - (1 - s0 * np.exp(-effective * z)), 0.1, 1)
    assert abs(got.mean() - exact) <= 4 * got.std(ddof=1) / np.sqrt(8) + 2e-3
    assert abs(effective - r0) < 0.03


@pytest.mark.parametrize("name", [name for name, (model, _) in MODELS.items() if "initial" in model.Params.describe()])
def test_agents_are_neither_made_nor_lost_and_nobody_is_infected_by_nobody(name):
    from calibrant._randomness import Randomness, as_seed

    model, kwargs = MODELS[name]
    inputs = model.default_inputs

    def rng(seed, phase, t):
        return Randomness.of_step(seed, phase, t, cal.StraightThrough(), recorder=None)

    @jax.jit
    def init(params, seed):
        return model.init(params, rng(seed, "init", 0))

    @jax.jit
    def step(params, state, inputs_t, seed, t):
        return model.step(params, state, inputs_t, rng(seed, "step", t))

    def states(params, seed):
        seed = as_seed(seed)
        out = [init(params, seed)]
        for t in range(kwargs.get("steps") or len(inputs)):
            out.append(step(params, out[-1], None if inputs is None else inputs[t], seed, t + 1))
        return out

    for seed in range(3):
        for state in states(model.Params(), seed):
            leaves = np.stack(jax.tree.leaves(state))
            assert set(np.unique(leaves)) <= {0.0, 1.0}
            counted = leaves[:-1] if hasattr(state, "falls_ill") else leaves  # falls_ill is an event, not a place
            assert counted.sum(0).max() <= 1
        none = model.Params().replace({"initial": 0.0})
        last = states(none, seed)[-1]
        assert np.asarray(getattr(last, "infected", getattr(last, "infectious", None))).sum() == 0


def test_first_cases_have_the_mean_asked_for_and_a_derivative():
    from calibrant._randomness import Randomness, as_seed
    from calibrant.models._epidemic import first_cases

    def count(expected, seed):
        rng = Randomness.of_step(seed, "init", 0, cal.StraightThrough(), recorder=None)
        return jnp.sum(first_cases(expected, 50, rng))

    counts = np.asarray(jax.vmap(count, (None, 0))(jnp.array(3.3), cal.seeds(0, 4000)))
    assert set(np.unique(counts)) == {3.0, 4.0}
    assert abs(counts.mean() - 3.3) <= 4 * counts.std() / np.sqrt(4000)
    assert jax.grad(count)(jnp.array(3.3), as_seed(1)) == 1


def _attack_rate_gradients(group, steps):
    """d attack rate / d beta: straight-through, and central differences with common random numbers."""
    model = cal.models.SIR(random_groups(1000, group, seed=1), dt=1.0)
    words = cal.seeds(0, 400)

    def attack(beta):
        def one(seed):
            params = model.Params().replace({"beta": beta, "initial": 10.0})
            out = cal.simulate(model, params, seed=seed, steps=steps).outputs
            return (out["infected"][-1] + out["recovered"][-1]) / 1000

        return jnp.mean(jax.vmap(one)(words))

    run = jax.jit(attack)
    return float(jax.jit(jax.grad(attack))(0.5)), float((run(0.52) - run(0.48)) / 0.04)


@pytest.mark.optimised
def test_straight_through_follows_finite_differences_where_agents_mix():
    gradient, difference = _attack_rate_gradients(1000, 15)
    assert abs(gradient / difference - 1) < 0.1


@pytest.mark.optimised
def test_straight_through_is_biased_in_small_groups_over_many_steps():
    """Not a wish but a fact to know of: groups that were never reached have no derivative to contribute."""
    gradient, difference = _attack_rate_gradients(50, 20)
    assert gradient > 1.5 * difference


def test_brock_hommes_agents_tend_to_the_mean_field():
    many, field = cal.models.BrockHommes(200_000), cal.models.BrockHommes(None)
    a = cal.simulate(many, many.Params(), seed=3, steps=12).outputs
    b = cal.simulate(field, field.Params(), seed=3, steps=12).outputs
    np.testing.assert_allclose(a, b, atol=0.01)


def test_brock_hommes_forecast_is_the_mean_of_the_next_price():
    field, forecast = cal.models.BrockHommes(None), cal.models.BrockHommesForecast()
    prices = jax.vmap(lambda s: cal.simulate(field, field.Params(), seed=s).outputs)(cal.seeds(0, 300))

    def errors(x):
        means = cal.simulate(forecast, forecast.Params(), seed=0, inputs=forecast.lagged(x)).outputs
        return x - means

    residual = np.asarray(jax.vmap(errors)(prices)).ravel()
    assert abs(residual.mean()) <= 4 * residual.std() / np.sqrt(residual.size)
    np.testing.assert_allclose(residual.std(), forecast.noise, rtol=0.02)


def test_a_regional_sir_without_factors_is_an_sir():
    regional = cal.models.RegionalSIR(200, areas=7, steps=20)
    plain = cal.models.SIR(regional.layers)
    values = {"beta": 0.7, "gamma": 0.2, "initial": 10.0}
    by_area = cal.simulate(regional, regional.default_params.replace(values), seed=3).outputs
    whole = cal.simulate(plain, plain.default_params.replace(values), seed=3, steps=20).outputs
    for name in ("infected", "recovered"):
        assert by_area[name].shape == (20, 7)
        np.testing.assert_array_equal(np.sum(by_area[name], axis=1), whole[name])
    assert regional.areas.sizes.tolist() == [29, 29, 28, 29, 28, 29, 28]


def test_a_factor_acts_in_its_area_and_period_alone():
    model = cal.models.RegionalSIR(400, areas=2, steps=21)
    params = model.default_params.replace({"initial": 40.0})
    assert params.log_factor.shape == model.smooth().shape() == (2, 3)
    low = params.replace({"log_factor": params.log_factor.at[1, 1].set(-20.0)})
    before, after = (cal.simulate(model, p, seed=1).outputs for p in (params, low))
    np.testing.assert_array_equal(before["infected"][:6], after["infected"][:6])
    ever = 200 - (after["infected"][:, 1] + after["recovered"][:, 1])  # susceptible in the second area
    assert ever[13] == ever[6]  # days 7 to 13 are the second period
    assert ever[14] < ever[13]
    assert np.any(before["infected"][7:14, 1] != after["infected"][7:14, 1])


def test_a_factor_may_be_common_to_areas_or_periods():
    model = cal.models.RegionalSIR(100, areas=2, steps=14)
    one = cal.simulate(model, model.Params(log_factor=[[0.1, -0.3]]), seed=1).outputs["infected"]
    both = cal.simulate(model, model.Params(log_factor=[[0.1, -0.3], [0.1, -0.3]]), seed=1).outputs["infected"]
    np.testing.assert_array_equal(one, both)


def test_factors_for_more_areas_than_there_are_are_refused():
    model = cal.models.RegionalSIR(100, areas=2, steps=14)
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), areas and periods"):
        cal.simulate(model, model.Params(log_factor=np.zeros((3, 2))), seed=1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"areas": 0}, id="without areas"),
        pytest.param({"areas": 5, "n_agents": 4}, id="with an empty area"),
        pytest.param({"steps": 0}, id="of no steps"),
        pytest.param({"days": 0}, id="with periods of no days"),
    ],
)
def test_a_regional_sir_is_refused(options):
    with pytest.raises(ValueError, match="RegionalSIR needs"):
        cal.models.RegionalSIR(**options)


@pytest.mark.optimised
def test_the_threshold_market_clusters_its_volatility():
    """Cont 2007, section 4, with rare updates: sizes of returns remember, signs do not, and tails are heavy."""
    model = cal.models.ThresholdMarket(1500, sharpness=200.0)
    params = model.Params(news=0.001, depth=10.0, update=0.015, threshold=0.001, spread=0.5)
    runs = jax.vmap(lambda s: cal.simulate(model, params, seed=s, steps=4000).outputs)(cal.seeds(0, 4))
    returns = np.asarray(runs)[:, 1000:]
    assert np.max(np.abs(returns)) <= 0.1  # all buy or all sell

    def autocorrelation(x, lag):
        each = [np.corrcoef(r[:-lag], r[lag:])[0, 1] for r in x]
        return np.mean(each), np.std(each, ddof=1) / 2

    for lag in (1, 5, 10, 20):
        memory, error = autocorrelation(np.abs(returns), lag)
        assert memory > 0.05 + error
    memory, error = autocorrelation(returns, 1)
    assert abs(memory) < 4 * error + 0.01
    assert np.mean(returns**4) / np.mean(returns**2) ** 2 > 3.2


@pytest.mark.parametrize(
    "options",
    [pytest.param({"agents": 0}, id="without traders"), pytest.param({"sharpness": 0.0}, id="without sharpness")],
)
def test_a_threshold_market_is_refused(options):
    with pytest.raises(ValueError, match="ThresholdMarket needs"):
        cal.models.ThresholdMarket(**options)


@pytest.mark.parametrize("k", [-1, 0, 1, 17, 299, 300, 1000, np.nan], ids=lambda k: f"{k} of 300")
def test_the_smallest_are_those_that_a_stable_sort_puts_first(k):
    u = np.random.default_rng(0).integers(1, 60, 300).astype(np.float32) / 64  # with many that are equal
    rank = np.empty(300, int)
    rank[np.argsort(u, kind="stable")] = np.arange(300)
    before, following = _smallest(jnp.asarray(u), jnp.asarray(k, jnp.float32))
    if np.isfinite(k):
        assert np.array_equal(before, rank < k)
        assert np.array_equal(following, rank == k)
    else:
        assert not np.any(before | following)
