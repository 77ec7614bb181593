"""Horizons mean what they say, and the same in every mode."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.flatten_util import ravel_pytree
from registry import HORIZONS, MODES

import calibrant as cal
from calibrant._randomness import Randomness, as_seed

T = 40
pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("length", [0, 1, 2, 7, 20, 38, 39])
def test_sliding_horizon_counts_paths(mode, length):
    def last(theta):
        params = toys.DriftParams(theta)
        horizon = cal.SlidingHorizon(length)
        return cal.simulate(toys.Drift(), params, seed=0, steps=T, mode=mode, horizon=horizon).outputs[-1]

    assert jax.grad(last)(0.3) == length + 1


def test_every_sliding_length_counts_paths():
    for length in range(T):
        grad = jax.grad(
            lambda th, h=length: cal.simulate(
                toys.Drift(),
                toys.DriftParams(th),
                seed=0,
                steps=T,
                mode=cal.HybridMode(),
                horizon=cal.SlidingHorizon(h),
            ).outputs[-1]
        )(0.3)
        assert grad == length + 1


STEPS = 7
INPUTS = np.sin(np.arange(float(STEPS)))


def _lags_jacobian(mode, horizon):
    """d (y, both) / d parameters at all times, from `simulate`."""

    def outputs(params):
        out = cal.simulate(toys.Lags(), params, seed=5, inputs=INPUTS, mode=mode, horizon=horizon).outputs
        return jnp.concatenate([out["y"][:, None], out["both"]], axis=1)

    flat, unravel = ravel_pytree(toys.LagsParams())
    return jax.jit(jax.jacrev(lambda v: outputs(unravel(v))))(flat)


def _rng(phase, t):
    return Randomness.of_step(as_seed(5), phase, t, cal.StraightThrough(), recorder=None)


def _path_terms():
    """`direct[t - 1]` and `term[t - 1, s]`: what the parameters do to the outputs at time t through `observe`, and
    through the state by acting at time s alone (0: `init`), each from a brute-force simulation of its own."""
    model = toys.Lags()
    flat, unravel = ravel_pytree(toys.LagsParams())

    def states(acting):
        """States at times 1, 2, ..., where time s sees the parameters `acting[s]`."""
        state = model.init(unravel(acting[0]), _rng("init", 0))
        out = []
        for t in range(1, STEPS + 1):
            state = model.step(unravel(acting[t]), state, jnp.asarray(INPUTS[t - 1]), _rng("step", t))
            out.append(state["lags"])
        return jnp.stack(out)

    def observe(v, lags):
        rows = []
        for t in range(1, STEPS + 1):
            state = {"lags": lags[t - 1], "count": jnp.int32(t), "speed": jnp.ones(())}
            out = model.observe(unravel(v), state, jnp.asarray(INPUTS[t - 1]), _rng("observe", t))
            rows.append(jnp.concatenate([out["y"][None], out["both"]]))
        return jnp.stack(rows)

    acting = jnp.broadcast_to(flat, (STEPS + 1, flat.shape[0]))
    lags = states(acting)
    of_state = jax.jacfwd(states)(acting)  # (t, lag, s, parameter)
    of_lags = jax.jacfwd(observe, argnums=1)(flat, lags)  # (t, output, t, lag)
    term = jnp.einsum("totl,tlsp->tosp", of_lags, of_state)
    return np.asarray(jax.jacfwd(observe)(flat, lags)), np.asarray(term)


@functools.cache
def _terms():
    return _path_terms()


def _by_paths(weight):
    """The derivative from the definition: every path, weighted by `weight(h, t, s)` of its h = t - s transitions."""
    direct, term = _terms()
    weights = np.array(
        [[weight(t - s, t, s) if s <= t else 0.0 for s in range(STEPS + 1)] for t in range(1, STEPS + 1)]
    )
    return direct + np.einsum("tosp,ts->top", term, weights)


DEFINITIONS = {
    **{f"sliding-{h}": (cal.SlidingHorizon(h), lambda n, t, s, h=h: float(n <= h)) for h in range(STEPS + 1)},
    **{f"block-{k}": (cal.BlockHorizon(k), lambda n, t, s, k=k: float(t // k == s // k)) for k in (1, 3, 20)},
    **{f"geometric-{g}": (cal.GeometricHorizon(g), lambda n, t, s, g=g: g**n) for g in (0.0, 0.3, 1.0)},
    "full": (cal.FullHorizon(), lambda n, t, s: 1.0),
}


@pytest.mark.parametrize("mode", ["reverse", "checkpointed", "hybrid"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_horizon_equals_its_sum_over_paths(mode, name):
    horizon, weight = DEFINITIONS[name]
    np.testing.assert_allclose(_lags_jacobian(MODES[mode], horizon), _by_paths(weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", [MODES["reverse"], MODES["hybrid"]], ids=["reverse", "hybrid"])
@pytest.mark.parametrize("name", ["sliding-1", "block-3", "geometric"])
def test_kept_parameters_are_never_cut(mode, name):
    full = _lags_jacobian(mode, cal.FullHorizon())
    kept = _lags_jacobian(mode, dataclasses.replace(HORIZONS[name], keep=("start",)))
    cut = _lags_jacobian(mode, HORIZONS[name])
    order = ravel_pytree(toys.LagsParams(a=jnp.array(0.0), b=jnp.zeros(2), start=jnp.array(1.0)))[0]
    where = np.flatnonzero(np.asarray(order))
    np.testing.assert_allclose(kept[..., where], full[..., where], atol=1e-12)
    others = np.flatnonzero(np.asarray(order) == 0)
    np.testing.assert_allclose(kept[..., others], cut[..., others], atol=1e-12)
    assert np.abs(np.asarray(cut - full))[..., where].max() > 1e-3


def test_geometric_horizon_at_its_ends():
    full = _lags_jacobian(cal.ReverseMode(), cal.FullHorizon())
    direct = _lags_jacobian(cal.ReverseMode(), cal.SlidingHorizon(0))
    np.testing.assert_allclose(_lags_jacobian(cal.ReverseMode(), cal.GeometricHorizon(1.0)), full, atol=1e-12)
    np.testing.assert_allclose(_lags_jacobian(cal.ReverseMode(), cal.GeometricHorizon(0.0)), direct, atol=1e-12)
    np.testing.assert_allclose(_lags_jacobian(cal.ReverseMode(), cal.BlockHorizon(1)), direct, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: cal.SlidingHorizon(-1), "SlidingHorizon needs"),
        (lambda: cal.SlidingHorizon(1.5), "SlidingHorizon needs"),  # pyright: ignore
        (lambda: cal.BlockHorizon(0), "BlockHorizon needs"),
        (lambda: cal.GeometricHorizon(1.5), "GeometricHorizon needs"),
    ],
)
def test_bad_horizons_are_refused(make, match):
    # The type checker of the tests may refuse first what a user without one is told in our words.
    with pytest.raises(Exception, match=f"{match}|Type-check error"):
        make()


def test_keeping_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="'thetta'"):
        jax.grad(
            lambda th: cal.simulate(
                toys.Drift(), toys.DriftParams(th), seed=0, steps=3, horizon=cal.SlidingHorizon(1, keep=("thetta",))
            ).outputs.sum()
        )(0.3)
