"""Every AD mode gives the same numbers, through every transformation."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from covering import product
from jax.flatten_util import ravel_pytree
from registry import HORIZONS, MODELS, MODES, RULES

import calibrant as cal
from calibrant._simulate import check_mode

pytestmark = pytest.mark.usefixtures("x64")


def _objective(name, mode, horizon=None, rule=None, recorder=None, seed=3):
    model, kwargs = MODELS[name]
    flat, unravel = ravel_pytree(model.Params())

    def objective(v, seed=seed):
        out = cal.simulate(
            model, unravel(v), seed=seed, mode=mode, horizon=horizon, rule=rule, recorder=recorder, **kwargs
        )
        leaves = [x for x in jax.tree.leaves(out.outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
        total = sum(jnp.sum(jnp.sin(x) * (1 + i)) for i, x in enumerate(leaves))
        return total + (0 if out.notes is None else jnp.sum(out.notes**2))

    return objective, flat


@functools.cache
def _in_reverse_mode(model, horizon):
    objective, flat = _objective(model, MODES["reverse"], HORIZONS[horizon])
    return jax.jit(jax.value_and_grad(objective))(flat)


TOYS = ("drift", "lags", "flips", "choice")
BUNDLED = ("random-walk", "sir", "brock-hommes", "regional-sir")


@pytest.mark.bits
@pytest.mark.parametrize(
    ("model", "horizon", "mode"),
    product(
        MODELS,
        HORIZONS,
        ["checkpointed", "hybrid"],
        soon=lambda model, horizon, mode: (
            (model in TOYS and mode == "hybrid")
            or (model, horizon, mode) == ("choice", "sliding-1", "checkpointed")
            or (model, horizon) == ("lags", "sliding-4")
            or (model in BUNDLED and (horizon, mode) == ("sliding-1", "hybrid"))
        ),
    ),
)
def test_modes_give_one_derivative(model, horizon, mode):
    value, expected = _in_reverse_mode(model, horizon)
    objective, flat = _objective(model, MODES[mode], HORIZONS[horizon])
    got_value, got = jax.jit(jax.value_and_grad(objective))(flat)
    assert got_value == value  # a derivative does not change the simulation, not by a bit
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "rule"),
    product(["flips", "choice"], RULES, soon=lambda model, rule: (model == "flips") == rule.startswith("gumbel")),
)
def test_modes_give_one_derivative_under_every_sampling_rule(model, rule):
    results = []
    for mode in ("reverse", "checkpointed", "hybrid"):
        objective, flat = _objective(model, MODES[mode], HORIZONS["sliding-4"], RULES[rule])
        results.append(jax.jit(jax.grad(objective))(flat))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "horizon"),
    product(
        ["flips", "choice", "sir", "boarding-school"],
        ["full", "sliding-1", "geometric"],
        soon=lambda model, horizon: model in TOYS,
    ),
)
def test_modes_give_one_derivative_of_the_probability_of_draws(model, horizon):
    results = []
    for mode in ("reverse", "checkpointed", "hybrid"):
        objective, flat = _objective(model, MODES[mode], HORIZONS[horizon], cal.Hard(), recorder=cal.LogProbability())
        results.append(jax.jit(jax.grad(objective))(flat))
    assert np.abs(results[0]).max() > 0
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "mode"),
    product(
        ["drift", "lags", "brock-hommes-mean-field", "brock-hommes-forecast"],
        MODES,
        soon=lambda model, mode: model == "lags" or mode == "hybrid",
    ),
)
def test_derivatives_of_smooth_models_are_limits_of_differences(model, mode):
    objective, flat = _objective(model, MODES[mode])
    both, eps = jax.jit(jax.value_and_grad(objective)), 1e-6
    differences = [(both(flat + eps * e)[0] - both(flat - eps * e)[0]) / (2 * eps) for e in jnp.eye(len(flat))]
    np.testing.assert_allclose(both(flat)[1], jnp.stack(differences), rtol=2e-5, atol=1e-6)


@functools.cache
def _hessian_in_reverse_mode(horizon):
    objective, flat = _objective("lags", MODES["reverse"], HORIZONS[horizon])
    return jax.jit(jax.hessian(objective))(flat)


@pytest.mark.parametrize(
    ("mode", "horizon"),
    product(
        MODES,
        ["full", "sliding-1", "block-3"],
        soon=lambda *case: case == ("hybrid-chunk-2", "block-3"),
    ),
)
def test_jvp_jacfwd_and_vmap_agree_with_the_gradient(mode, horizon):
    objective, flat = _objective("lags", MODES[mode], HORIZONS[horizon])
    gradient_of = jax.jit(jax.grad(objective))
    gradient = gradient_of(flat)
    v = jnp.arange(1.0, len(flat) + 1)
    along = jax.jit(lambda x: jax.jvp(objective, (x,), (v,))[1])(flat)
    np.testing.assert_allclose(along, gradient @ v, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(objective))(flat), gradient, rtol=1e-10)
    batch = jnp.stack([flat, flat + 0.1])
    each = jnp.stack([gradient_of(x) for x in batch])
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(objective)))(batch), each, rtol=1e-10, atol=1e-12)
    words = cal.seeds(0, 3)
    over_seeds = jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(flat, words)
    np.testing.assert_allclose(over_seeds, jnp.stack([gradient_of(flat, w) for w in words]), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("horizon", ["full", "sliding-1", "block-3"])
def test_modes_give_one_hessian(mode, horizon):
    objective, flat = _objective("lags", MODES[mode], HORIZONS[horizon])
    hessian = jax.jit(jax.hessian(objective))(flat)
    np.testing.assert_allclose(hessian, _hessian_in_reverse_mode(horizon), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", product(MODES, soon=lambda mode: mode in ("reverse", "hybrid")))
def test_the_hessian_is_the_derivative_of_the_gradient(mode):
    objective, flat = _objective("lags", MODES[mode])
    gradient, eps = jax.jit(jax.grad(objective)), 1e-6
    rows = [(gradient(flat + eps * e) - gradient(flat - eps * e)) / (2 * eps) for e in jnp.eye(len(flat))]
    np.testing.assert_allclose(jax.jit(jax.hessian(objective))(flat), jnp.stack(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", product(MODES, soon=lambda mode: mode in ("reverse", "hybrid")))
def test_the_derivative_in_one_parameter_is_its_part_of_all(mode):
    model = toys.Lags()

    def one(a):
        params = toys.LagsParams(a=a)
        return cal.simulate(model, params, seed=1, inputs=np.zeros(9), mode=MODES[mode]).outputs["y"].sum()

    objective_all = jax.grad(
        lambda p: cal.simulate(model, p, seed=1, inputs=np.zeros(9), mode=MODES[mode]).outputs["y"].sum()
    )(toys.LagsParams())
    np.testing.assert_allclose(jax.grad(one)(0.7), objective_all.a, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["inputs", "model"])
def test_a_tangent_on_what_is_no_parameter_is_refused(mode, what):
    def wrong(x):
        if what == "inputs":
            model, inputs = toys.Lags(), x * jnp.ones(9)
            return cal.simulate(model, toys.LagsParams(), seed=1, inputs=inputs, mode=MODES[mode]).outputs["y"].sum()
        model = cal.models.SIR(cal.networks.random_groups(10, 5), shares=jnp.ones(1))
        model = eqx.tree_at(lambda m: m.shares, model, x * jnp.ones(1))
        return cal.simulate(model, model.Params(), seed=1, steps=3, mode=MODES[mode]).outputs["infected"].sum()

    for transform in (jax.grad, jax.jacfwd):
        with pytest.raises(Exception, match="which is no parameter"):
            transform(wrong)(1.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 17, 23])
def test_checkpointing_handles_any_number_of_steps(steps):
    def last(theta, mode):
        return cal.simulate(toys.Drift(), toys.DriftParams(theta), seed=0, steps=steps, mode=mode).outputs[-1]

    for segments in (None, 1, 3, 100):
        assert jax.grad(last)(0.3, cal.CheckpointedReverseMode(segments)) == steps


def _temporary_bytes(mode, steps, horizon=None):
    model = cal.models.SIR(cal.networks.random_groups(10_000, 5, contiguous=True))

    def loss(beta):
        params = model.Params().replace({"beta": beta})
        return cal.simulate(model, params, seed=0, steps=steps, mode=mode, horizon=horizon).outputs["infected"].sum()

    compiled = jax.jit(jax.grad(loss)).lower(jnp.float32(0.4)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


SHORT, LONG = 100, 10_000  # steps


@pytest.mark.optimised
@pytest.mark.parametrize(
    "horizon", [cal.FullHorizon(), pytest.param(cal.SlidingHorizon(2), marks=pytest.mark.slow)], ids=["full", "sliding"]
)
def test_memory_of_checkpointed_reverse_mode_grows_as_the_square_root_of_steps(horizon, float32):
    mode = cal.CheckpointedReverseMode()
    short, long = (_temporary_bytes(mode, steps, horizon) for steps in (SHORT, LONG))
    # 100 times the steps: 10 times the memory, with a quarter's allowance for what does not grow
    assert long <= 1.25 * np.sqrt(LONG / SHORT) * short


@pytest.mark.optimised
def test_memory_of_hybrid_mode_grows_by_outputs_and_jacobian_alone(float32):
    short, long = (_temporary_bytes(cal.HybridMode(), steps) for steps in (SHORT, LONG))
    assert long <= short + 4 * 8 * (LONG - SHORT)  # two outputs and their tangents, each twice


@pytest.mark.slow
def test_memory_of_reverse_mode_grows_with_steps(float32):
    """The measure would show growth of the others."""
    short, long = (_temporary_bytes(cal.ReverseMode(), steps) for steps in (SHORT, 10 * SHORT))
    assert long > 8 * short


class _Seasons(cal.AbstractModel):
    """Agents who differ in a way that depends on the time and on no parameter."""

    phases: jax.Array

    class Params(cal.Params):
        a: jax.Array = cal.parameter(0.3)
        b: jax.Array = cal.parameter(0.6)

    def init(self, params, rng):
        return jnp.zeros(self.phases.shape), jnp.zeros((), jnp.int32)

    def step(self, params, state, inputs_t, rng):
        x, t = state
        up = rng.bernoulli(params.b, site="up", shape=x.shape)
        return jnp.tanh(params.a * x + jnp.sin(self.phases * t.astype(x.dtype)) + up), t + 1

    def observe(self, params, state, inputs_t, rng):
        return jnp.mean(state[0])


@pytest.mark.optimised
def test_memory_of_chunks_does_not_grow_with_steps():
    """Nothing of the simulation is taken out of the loop over chunks of tangents."""
    n = 10_000
    model = _Seasons(jnp.linspace(0.0, 1.0, n))

    def needed(steps):
        def last(p):
            return cal.simulate(model, p, seed=0, steps=steps, mode=cal.HybridMode(chunk=1)).outputs[-1]

        return jax.jit(jax.grad(last)).lower(model.Params()).compile().memory_analysis().temp_size_in_bytes

    assert needed(100) <= needed(10) + 8 * n  # one array over agents


def _relayed(mode):
    def objective(theta):
        return cal.simulate(toys.Relay(), toys.RelayParams(theta), seed=0, steps=6, mode=mode).outputs[-1]

    return objective


def test_tangents_reach_states_that_parameters_move_two_steps_later():
    theta = jnp.linspace(0.1, 0.3, 4)
    expected = jax.grad(_relayed(cal.ReverseMode()))(theta)
    assert np.all(np.asarray(expected) != 0)
    np.testing.assert_allclose(jax.grad(_relayed(cal.HybridMode()))(theta), expected, rtol=1e-12)


@pytest.mark.optimised
def test_what_no_parameter_moves_has_no_tangent():
    compiled = jax.jit(jax.grad(_relayed(cal.HybridMode()))).lower(jnp.ones(50)).compile()
    one_array = 100_000 * 8
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * one_array  # with tangents: 50 of them and more


class _Clock(cal.AbstractModel):
    """One output that depends on nothing beside one that depends on two parameters."""

    class Params(cal.Params):
        a: jax.Array = cal.parameter(0.3)
        b: jax.Array = cal.parameter(0.6)

    def init(self, params, rng):
        return jnp.zeros(()), jnp.zeros(())

    def step(self, params, state, inputs_t, rng):
        return state[0] + 1, params.a * state[1] + params.b

    def observe(self, params, state, inputs_t, rng):
        return {"clock": state[0], "y": state[1]}


@pytest.mark.parametrize(
    ("mode", "horizon"),
    product(
        [*MODES, "hybrid-chunk-1"],
        ["full", "sliding-1"],
        soon=lambda mode, horizon: mode in ("hybrid", "hybrid-chunk-1") or (mode, horizon) == ("checkpointed", "full"),
    ),
)
def test_a_batch_under_jit_has_the_derivative_of_the_batch_without(mode, horizon):
    """JAX infers batch axes from the function and believes that the rule has the same."""
    mode = (MODES | {"hybrid-chunk-1": cal.HybridMode(chunk=1)})[mode]

    def outputs(ab, mode=mode):
        params = _Clock.Params(ab[0], ab[1])
        return cal.simulate(_Clock(), params, seed=0, steps=5, mode=mode, horizon=HORIZONS[horizon]).outputs

    def total(batch, mode=mode):
        out = jax.vmap(lambda x: outputs(x, mode))(batch)
        assert out["clock"].shape == out["y"].shape == (3, 5)
        return jnp.sum(jnp.sin(out["y"]) * out["clock"])

    batch = jnp.array([[0.3, 0.6], [0.2, 0.5], [0.4, 0.1]])
    expected = jax.grad(total)(batch, cal.ReverseMode())
    np.testing.assert_allclose(jax.jit(jax.grad(total))(batch), expected, rtol=1e-10)


def test_a_planner_is_refused_as_the_mode_of_one_simulation():
    with pytest.raises(ValueError, match="got AutoMode; a planner chooses among them in a calibration only"):
        check_mode(cal.AutoMode())
