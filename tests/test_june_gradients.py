"""JUNE: derivatives, by every mode, in batches and in chunks, and against closed forms and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("horizon", [cal.FullHorizon(), cal.SlidingHorizon(0)], ids=["full", "direct"])
def test_modes_agree_on_june(horizon):
    world = worlds.build_world(400, seed=2)
    model = June(world, Calendar(MONDAY, 10))
    value, expected = _gradient(model, cal.ReverseMode(), horizon)
    for mode in (cal.HybridMode(), cal.HybridMode(chunk=3), cal.CheckpointedReverseMode()):
        got_value, got = _gradient(model, mode, horizon)
        assert got_value == value
        for name, g in got.items():
            assert expected[name] != 0
            np.testing.assert_allclose(g, expected[name], rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_a_batch_is_differentiated_like_each_alone():
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 10))
    loss = cal.losses.Streams({"cumulative_infections": cal.losses.LogMeanSquaredError()})
    problem = cal.Problem(model, {"cumulative_infections": jnp.arange(1.0, 11.0)}, loss)
    values = {"log_seed": jnp.array([-1.5, -1.0, -1.2]), "log_beta_household": jnp.array([0.6, 0.5, 0.2])}
    words = cal.seeds(4, (3, 1))

    def gradient(values, words, **how):
        return jax.jit(jax.grad(lambda v: jnp.sum(cal.expect(problem, v, seeds=words, **how).losses)))(values)

    alone = [gradient({k: x[i : i + 1] for k, x in values.items()}, words[i : i + 1]) for i in range(3)]
    for mode in (cal.ReverseMode(), cal.CheckpointedReverseMode(), cal.HybridMode()):
        for few in (None, 2):
            together = gradient(values, words, mode=mode, simulations_at_once=few)
            for name, g in together.items():
                np.testing.assert_allclose(g, jnp.concatenate([x[name] for x in alone]), rtol=1e-8)
                assert np.all(g != 0)


def test_echoes_in_a_group_add_up_to_an_outbreak():
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


def test_a_jacobian_and_its_chunks_are_equal_to_the_bit():
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 10))
    names = [name for name, info in model.Params.describe().items() if info.prior is not None]
    base = model.default_params.replace({"log_seed": -1.5})

    def jacobian(chunk):
        def infections(values):
            params = base.replace(dict(zip(names, values, strict=True)))
            how: dict = {"mode": cal.HybridMode(chunk=chunk), "horizon": cal.SlidingHorizon(0)}
            return cal.simulate(model, params, seed=4, **how).outputs["infections"]

        return jax.jit(jax.jacrev(infections))(jnp.stack([getattr(base, name) for name in names]))

    whole = jacobian(None)
    assert np.count_nonzero(whole) > whole.size / 2
    for chunk in (None, 1, 4):
        np.testing.assert_array_equal(jacobian(chunk), whole)


@pytest.mark.usefixtures("x64")
def test_expected_series_have_exact_gradients():
    """Severity and delays act after the scan: under any horizon their derivative is that of finite differences."""
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 25))
    base = model.default_params.replace({"log_seed": -1.0})

    def deaths(v):
        params = base.replace({"severity": v[0], "fatality": v[1], "admission_delay": v[2], "death_delay": v[3]})
        out = cal.simulate(model, params, seed=4, mode=cal.HybridMode(), horizon=cal.SlidingHorizon(0)).outputs
        return jnp.sum(jnp.sin(jnp.arange(25) / 9) * (out["expected_deaths"] * 100 + out["expected_admissions"]))

    v, h = jnp.zeros(4), 1e-5
    got = jax.grad(deaths)(v)
    for i in range(4):
        d = (deaths(v.at[i].add(h)) - deaths(v.at[i].add(-h))) / (2 * h)
        np.testing.assert_allclose(got[i], d, rtol=1e-6)
