"""Horizons mean what they say, and the same in every mode."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from covering import product
from jax.flatten_util import ravel_pytree
from registry import HORIZONS, MODES

import calibrant as cal
from calibrant._randomness import Randomness, as_seed

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 7
INPUTS = np.sin(np.arange(float(STEPS)))


@functools.cache
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


#: One of every kind. The others are tested in one mode, since `test_modes` compares the modes.
IN_EVERY_MODE = ("sliding-0", "sliding-2", "block-3", "geometric-0.3", "full")


@pytest.mark.parametrize(
    ("name", "mode"),
    product(
        DEFINITIONS,
        ["reverse", "checkpointed", "hybrid"],
        soon=lambda name, mode: mode == "hybrid" or name in IN_EVERY_MODE,
    ),
)
def test_the_derivative_under_a_horizon_is_its_sum_over_paths(name, mode):
    horizon, weight = DEFINITIONS[name]
    np.testing.assert_allclose(_lags_jacobian(MODES[mode], horizon), _by_paths(weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["reverse", "hybrid"])
@pytest.mark.parametrize("name", ["sliding-1", "block-3", "geometric"])
def test_kept_parameters_are_never_cut(mode, name):
    full = _lags_jacobian(MODES[mode], cal.FullHorizon())
    kept = _lags_jacobian(MODES[mode], dataclasses.replace(HORIZONS[name], keep=("start",)))
    cut = _lags_jacobian(MODES[mode], HORIZONS[name])
    order = ravel_pytree(toys.LagsParams(a=jnp.array(0.0), b=jnp.zeros(2), start=jnp.array(1.0)))[0]
    where = np.flatnonzero(np.asarray(order))
    np.testing.assert_allclose(kept[..., where], full[..., where], atol=1e-12)
    others = np.flatnonzero(np.asarray(order) == 0)
    np.testing.assert_allclose(kept[..., others], cut[..., others], atol=1e-12)
    assert np.abs(np.asarray(cut - full))[..., where].max() > 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda: cal.SlidingHorizon(-1), "SlidingHorizon needs", id="negative length"),
        pytest.param(lambda: cal.SlidingHorizon(1.5), "SlidingHorizon needs", id="half a step"),  # pyright: ignore
        pytest.param(lambda: cal.BlockHorizon(0), "BlockHorizon needs", id="blocks of nothing"),
        pytest.param(lambda: cal.GeometricHorizon(1.5), "GeometricHorizon needs", id="paths that grow"),
    ],
)
def test_an_impossible_horizon_is_refused(make, match):
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
