"""The one loop over time, and its derivative under a horizon. AD modes receive it and decide how to run it."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

from calibrant._devices import divide_agents
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._model import AbstractModel, describe_shapes
from calibrant._randomness import Randomness
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan

#: Like `jax.lax.scan(body, init, xs)`.
Scan = Callable[[Callable, Any, Any], tuple[Any, Any]]


def _moving_outputs(fn: Callable, primals: tuple, moved: PyTree) -> PyTree:
    """Which leaves of `fn(*primals)` have a tangent if those marked in `moved` have: booleans, shaped like its output.

    JAX knows while it traces which tangents are zero whatever the numbers, and tells a rule that asks. What never moves
    (ages, durations drawn from fixed distributions) then needs no tangent carried through time.
    """
    moving, still = eqx.partition(primals, moved)
    marks: PyTree = None

    def asked(moving):
        nonlocal marks
        leaves, treedef = jax.tree.flatten(fn(*eqx.combine(moving, still)))
        found = [False] * len(leaves)

        def probed(i: int, x: Array) -> Array:
            @eqx.filter_custom_jvp
            def probe(x):
                return x

            @probe.def_jvp
            def _rule(primals, tangents):
                (x,), (dx,) = primals, tangents
                found[i] = dx is not None
                return x, jnp.zeros_like(x) if dx is None else dx

            return probe(x)

        out = [probed(i, x) for i, x in enumerate(leaves) if eqx.is_inexact_array(x)]
        marks = jax.tree.unflatten(treedef, found)
        return out

    jax.eval_shape(lambda: jax.jvp(asked, (moving,), (jax.tree.map(jnp.ones_like, moving),)))
    return marks


class Loop(eqx.Module):
    """Everything of a simulation but the parameters that may be differentiated."""

    model: AbstractModel
    inputs: PyTree[Array]
    seed: UInt32[Array, "2"]
    rule: AbstractSamplingPlan
    steps: int = eqx.field(static=True)
    recorder: AbstractRecorder | None

    def _rng(self, phase: str, t: Any) -> Randomness:
        return Randomness.of_step(self.seed, phase, t, self.rule, recorder=self.recorder)

    def start(self, params: Any) -> tuple[PyTree, PyTree]:
        rng = self._rng("init", 0)
        state = jax.tree.map(jnp.asarray, self.model.init(params, rng))
        return divide_agents(state, self.model.n_agents), rng.notes

    def transition(self, params: Any, state: PyTree, t: Array, inputs_t: PyTree) -> tuple[PyTree, PyTree]:
        rng = self._rng("step", t)
        new = self.model.step(params, state, inputs_t, rng)
        new = jax.tree.map(jnp.asarray, new)
        _check_same_structure(self.model, state, new)
        return divide_agents(new, self.model.n_agents), rng.notes

    def observe(self, params: Any, state: PyTree, t: Array, inputs_t: PyTree) -> tuple[PyTree, PyTree]:
        rng = self._rng("observe", t)
        outputs = self.model.observe(params, state, inputs_t, rng)
        return jax.tree.map(jnp.asarray, outputs), rng.notes

    def times(self) -> Array:
        """1, 2, ..., steps: the initial state has time 0."""
        return jnp.arange(1, self.steps + 1, dtype=jnp.int32)

    def run(self, params: Any, scan: Scan) -> tuple[PyTree, PyTree]:
        """Outputs of all steps and the notes taken at times 0, 1, ..., steps."""

        def body(state, ts):
            state, before = self.transition(params, state, *ts)
            outputs, after = self.observe(params, state, *ts)
            return state, (outputs, _add(before, after))

        state, first = self.start(params)
        _, (outputs, notes) = scan(body, state, (self.times(), self.inputs))
        return outputs, _prepend(first, notes)

    def _moving_state(self, theta: Any, params_of: Callable) -> PyTree:
        """Which leaves of the state ever have a tangent: the least set that the start and a transition agree on."""

        def start(theta):
            return self.start(params_of(theta))[0]

        state = jax.eval_shape(start, theta)
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
        moves = _moving_outputs(start, (theta,), True)
        first = jnp.ones((), jnp.int32), _first_slice(self.inputs)

        def transition(state, theta):
            return self.transition(params_of(theta), state, *first)[0]

        while True:
            after = _moving_outputs(transition, (state, theta), (moves, True))
            joined = jax.tree.map(operator.or_, moves, after)
            if joined == moves:
                return moves
            moves = joined

    def run_with_tangent(
        self, theta: Any, fixed: Any, v: Any, horizon: AbstractHorizon, scan: Scan, *, columns: bool
    ) -> tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree]]:
        """`run`, and its derivative along `v` as the horizon defines it.

        **Arguments:** `theta` and `fixed`, the differentiated and the other leaves of the parameters; `v`, tangents of
        `theta`, with `columns=True` many of them side by side on a last axis. That axis stays last throughout, so
        that a gather or a segment sum over agents moves contiguous rows.

        **Returns:** (outputs, notes) and their tangents, `None` where an output is no float.
        """
        cut, kept = _split_kept(v, horizon)
        full = FullHorizon()

        def spread(fn):
            return jax.vmap(fn, in_axes=-1, out_axes=-1) if columns else fn

        def params_of(theta):
            return eqx.combine(theta, fixed)

        moves = self._moving_state(theta, params_of)

        def start(theta):
            state, notes = self.start(params_of(theta))
            moving, still = eqx.partition(state, moves)
            return (moving, notes), still

        (moving, first), still = start(theta)

        def start_tangent(cut, kept):
            d_cut = jax.jvp(lambda th: start(th)[0], (theta,), (cut,))[1]
            d_kept = None if kept is None else jax.jvp(lambda th: start(th)[0], (theta,), (kept,))[1]
            d_first = _add(d_cut[1], None if d_kept is None else d_kept[1])
            return horizon.start(d_cut[0]), None if d_kept is None else full.start(d_kept[0]), d_first

        layers, kept_layers, d_first = spread(start_tangent)(cut, kept)

        def body(carry, ts):
            (moving, still), layers, kept_layers = carry

            def transition(moving, theta):
                state, notes = self.transition(params_of(theta), eqx.combine(moving, still), *ts)
                new_moving, new_still = eqx.partition(state, moves)
                return (new_moving, notes), new_still

            def observe(moving, theta):
                outputs, notes = self.observe(params_of(theta), eqx.combine(moving, new_still), *ts)
                y, other = eqx.partition(outputs, eqx.is_inexact_array)
                return (y, notes), other

            (new_moving, before), new_still = transition(moving, theta)
            (y, after), other = observe(new_moving, theta)

            def tangent(layers, kept_layers, cut, kept):
                def advance(horizon, layers, v):
                    def push(dx):
                        return jax.jvp(lambda x: transition(x, theta)[0][0], (moving,), (dx,))[1]

                    def direct():
                        return jax.jvp(lambda th: transition(moving, th)[0][0], (theta,), (v,))[1]

                    def both(dx):
                        return jax.jvp(lambda x, th: transition(x, th)[0][0], (moving, theta), (dx, v))[1]

                    return horizon.advance(push, direct, both, layers, ts[0])

                new_layers = advance(horizon, layers, cut)
                new_kept = None if kept is None else advance(full, kept_layers, kept)
                v = _add(cut, kept)
                d_before = jax.tree.map(jnp.zeros_like, before)
                if self.recorder is not None:  # notes of draws are outputs of the transition: no horizon cuts them
                    dx = _add(horizon.total(layers), kept_layers)
                    d_before = jax.jvp(lambda x, th: transition(x, th)[0][1], (moving, theta), (dx, v))[1]
                dx = _add(horizon.total(new_layers), new_kept)
                d_y, d_after = jax.jvp(lambda x, th: observe(x, th)[0], (new_moving, theta), (dx, v))[1]
                return new_layers, new_kept, d_y, _add(d_before, d_after)

            layers, kept_layers, d_y, d_notes = spread(tangent)(layers, kept_layers, cut, kept)
            outputs = eqx.combine(y, other)
            return ((new_moving, new_still), layers, kept_layers), ((outputs, _add(before, after)), (d_y, d_notes))

        carry = ((moving, still), layers, kept_layers)
        _, ((outputs, notes), (d_y, d_notes)) = scan(body, carry, (self.times(), self.inputs))
        return (outputs, _prepend(first, notes)), (d_y, _prepend(d_first, d_notes))


def _first_slice(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def _prepend(first: PyTree, rest: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _add(a: PyTree, b: PyTree | None) -> PyTree:
    return a if b is None else jax.tree.map(jnp.add, a, b)


def _split_kept(v: Any, horizon: AbstractHorizon) -> tuple[Any, Any]:
    """`v` in the part a horizon may cut and the part it must keep (`None` if there is no such part)."""
    if not horizon.keep or isinstance(horizon, FullHorizon):
        return v, None
    unknown = [name for name in horizon.keep if name not in type(v).describe()]
    if unknown:
        raise ValueError(
            f"The horizon keeps {', '.join(map(repr, unknown))}, which is no parameter of this model; "
            f"it has {', '.join(type(v).describe())}."
        )

    def zeroed(names):
        where = {name: jax.tree.map(jnp.zeros_like, getattr(v, name)) for name in names}
        return v.replace(where)

    others = [name for name in type(v).describe() if name not in horizon.keep]
    return zeroed(horizon.keep), zeroed(others)


def _check_same_structure(model: AbstractModel, old: PyTree, new: PyTree) -> None:
    def spec(tree):
        return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    if spec(old) != spec(new):
        raise ValueError(
            f"{type(model).__name__}.step must return a state like the one it was given; "
            f"it was given {describe_shapes(old)} and returned {describe_shapes(new)}."
        )
