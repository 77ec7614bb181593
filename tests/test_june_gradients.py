"""JUNE: derivatives, by every mode, in batches and in chunks, and against closed forms and differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import product
from towns import MONDAY, at_once, make_world

import calibrant as cal
from calibrant import worlds
from calibrant.models.june import Calendar
from calibrant.models.june._june import _share_of_echo

June = cal.models.June


def _gradient(model, mode, horizon=None, names=("log_seed", "log_beta_household", "log_beta_company", "severity")):
    base = model.default_params.replace({"log_seed": -1.5})

    def objective(values):
        out = cal.simulate(model, base.replace(values), seed=4, mode=mode, horizon=horizon).outputs
        return jnp.sum(jnp.log1p(out["infections"])) + jnp.sum(out["expected_admissions"])

    values = {name: getattr(base, name) for name in names}
    return jax.jit(jax.value_and_grad(objective))(values)


def _town(days=10):
    return _town_in(days, jax.config.jax_enable_x64)


@functools.cache
def _town_in(days, x64):
    """One for each precision: it holds arrays."""
    return June(worlds.build_world(400, seed=2), Calendar(MONDAY, days))


@functools.cache
def _gradient_in_reverse_mode(horizon):
    return _gradient(_town(), cal.ReverseMode(), horizon)


HORIZONS = {"full": cal.FullHorizon(), "direct": cal.SlidingHorizon(0)}
MODES = {
    "hybrid": cal.HybridMode(),
    "hybrid-chunk-3": cal.HybridMode(chunk=3),
    "checkpointed": cal.CheckpointedReverseMode(),
}


@pytest.mark.bits
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("horizon", "mode"), product(HORIZONS, MODES, soon=lambda *case: case == ("direct", "hybrid-chunk-3"))
)
def test_modes_give_one_derivative_of_june(horizon, mode):
    value, expected = _gradient_in_reverse_mode(HORIZONS[horizon])
    got_value, got = _gradient(_town(), MODES[mode], HORIZONS[horizon])
    assert got_value == value
    for name, g in got.items():
        assert expected[name] != 0
        np.testing.assert_allclose(g, expected[name], rtol=1e-8)


def _gradients_of_losses(**how):
    """At three values, of log errors of the epidemic of a town."""
    loss = cal.losses.Streams({"cumulative_infections": cal.losses.LogMeanSquaredError()})
    problem = cal.Problem(_town(), {"cumulative_infections": jnp.arange(1.0, 11.0)}, loss)
    values = {"log_seed": jnp.array([-1.5, -1.0, -1.2]), "log_beta_household": jnp.array([0.6, 0.5, 0.2])}

    @jax.jit
    def gradient(values, words):
        return jax.grad(lambda v: jnp.sum(cal.expect(problem, v, seeds=words, **how).losses))(values)

    return gradient, values, cal.seeds(4, (3, 1))


@functools.cache
def _each_alone():
    gradient, values, words = _gradients_of_losses()
    rows = [slice(i, i + 1) for i in range(3)]
    alone = [gradient({k: x[row] for k, x in values.items()}, words[row]) for row in rows]
    return {name: jnp.concatenate([x[name] for x in alone]) for name in values}


IN_A_BATCH = {"reverse": cal.ReverseMode(), "checkpointed": cal.CheckpointedReverseMode(), "hybrid": cal.HybridMode()}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("few", ["all at once", "two at once"])
@pytest.mark.parametrize("mode", IN_A_BATCH)
def test_a_batch_of_june_is_differentiated_like_each_alone(mode, few):
    at_once = 2 if few == "two at once" else None
    gradient, values, words = _gradients_of_losses(mode=IN_A_BATCH[mode], simulations_at_once=at_once)
    for name, g in gradient(values, words).items():
        np.testing.assert_allclose(g, _each_alone()[name], rtol=1e-8)
        assert np.all(g != 0)


def test_what_a_derivative_repeats_in_a_group_adds_up_to_the_expected_outbreak():
    """What a derivative repeats, s R + (s R)^2 + ..., is the expected number of others infected."""
    total = 1.10
    for others, reproduction in ((1, 0.3), (1, 5.0), (3, 0.8), (3, 20.0), (49, 3.0)):
        share = _share_of_echo(jnp.array([reproduction / total]), jnp.array([1 / others]))
        once = float(share[0]) * reproduction
        assert once < 1
        a = 0.5
        for _ in range(200):  # the equation of the final size
            a = 1 - np.exp(-reproduction / others * (1 + (others - 1) * a))
        np.testing.assert_allclose(once / (1 - once), others * a, rtol=0.02)
    # In a pair it is exact: the other is infected or not.
    share = _share_of_echo(jnp.array([2.0 / total]), jnp.array([1.0]))
    once = 2 * float(share[0])
    np.testing.assert_allclose(once / (1 - once), 1 - np.exp(-2), rtol=1e-5)
    # A rare infection is repeated as it is.
    np.testing.assert_allclose(_share_of_echo(jnp.array([1e-3]), jnp.array([0.25])), 1, rtol=0.01)


@pytest.mark.slow
def test_the_full_derivative_stays_bounded_where_households_repeat():
    """One import more infects two people of a pair at most, though in a derivative they infect each other for ever."""
    n = 300  # pairs; nothing spreads outside them
    world = make_world([30] * (2 * n), np.repeat(np.arange(n), 2), [-1] * (2 * n))
    model, params = at_once(June(world, Calendar(MONDAY, 60)))

    def infected(log_seed, log_beta):
        how: dict = {"mode": cal.CheckpointedReverseMode(), "horizon": cal.FullHorizon()}
        params_ = params.replace({"log_beta_household": log_beta, "log_seed": log_seed})
        return cal.simulate(model, params_, seed=1, **how).outputs["cumulative_infections"][-1] / (2 * n)

    imports = np.log(10) * 0.1  # derivative of the imported share in log_seed, at 0.1
    for log_beta in (0.0, 1.0, 2.0):
        slope = float(jax.jit(jax.grad(infected))(jnp.array(-1.0), jnp.array(log_beta)))
        assert 0.5 * imports < slope < 2.2 * imports


@functools.cache
def _jacobian(chunk):
    model = _town()
    names = [name for name, info in model.Params.describe().items() if info.prior is not None]
    base = model.default_params.replace({"log_seed": -1.5})

    def infections(values):
        params = base.replace(dict(zip(names, values, strict=True)))
        how: dict = {"mode": cal.HybridMode(chunk=chunk), "horizon": cal.SlidingHorizon(0)}
        return cal.simulate(model, params, seed=4, **how).outputs["infections"]

    return jax.jit(jax.jacrev(infections))(jnp.stack([getattr(base, name) for name in names]))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4], ids=["of one", "of four"])
def test_a_jacobian_of_june_is_that_of_its_chunks_to_the_bit(chunk):
    whole = _jacobian(None)
    assert np.count_nonzero(whole) > whole.size / 2
    np.testing.assert_array_equal(_jacobian(chunk), whole)


@pytest.mark.usefixtures("x64")
def test_expected_series_have_exact_gradients():
    """Severity and delays act after the scan: under any horizon their derivative is that of finite differences."""
    model = _town(25)
    base = model.default_params.replace({"log_seed": -1.0})

    def deaths(v):
        params = base.replace({"severity": v[0], "fatality": v[1], "admission_delay": v[2], "death_delay": v[3]})
        out = cal.simulate(model, params, seed=4, mode=cal.HybridMode(), horizon=cal.SlidingHorizon(0)).outputs
        return jnp.sum(jnp.sin(jnp.arange(25) / 9) * (out["expected_deaths"] * 100 + out["expected_admissions"]))

    v, h, both = jnp.zeros(4), 1e-5, jax.jit(jax.value_and_grad(deaths))
    got = both(v)[1]
    for i in range(4):
        d = (both(v.at[i].add(h))[0] - both(v.at[i].add(-h))[0]) / (2 * h)
        np.testing.assert_allclose(got[i], d, rtol=1e-6)
