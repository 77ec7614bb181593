"""AD modes: how the derivative of the loop over time is computed. Every mode gives the same numbers.

| mode | time | memory | use it for |
| --- | --- | --- | --- |
| `ReverseMode` | about 3 simulations | every step is stored | small models |
| `CheckpointedReverseMode` | about 4 simulations | about 2 sqrt(T) states | many parameters |
| `HybridMode` | about 1 + P / 2 simulations | P tangents, nothing stored over time | few parameters, many agents |

Whichever runs inside, `simulate` is an ordinary JAX function outside: `grad`, `jvp`, `hessian`, `vmap` and `jit` of it
work. Second derivatives under a finite horizon are the derivative of the truncated gradient along *all* paths.
"""

import abc
import math
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._loop import Loop

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractMode(eqx.Module):
    """How the loop over time is run and differentiated."""

    #: Whether a reverse pass stores the simulation (then running few at once must recompute them to save memory).
    stores_steps: AbstractClassVar[bool]

    @abc.abstractmethod
    def scan(self, body: Any, init: Any, xs: Any) -> tuple[Any, Any]:
        """Like `jax.lax.scan(body, init, xs)`."""

    @abc.abstractmethod
    def run(self, params: Any, loop: Loop, horizon: AbstractHorizon) -> tuple[PyTree[Array], PyTree[Array]]:
        """`loop.run(params)`, differentiable in `params` by this mode under this horizon."""

    @abc.abstractmethod
    def tangent(self, theta: Any, fixed: Any, v: Any, loop: Loop, horizon: AbstractHorizon) -> tuple[Any, Any]:
        """Outputs and their tangents along `v`; linear in `v`, so that reverse mode can transpose it."""


@eqx.filter_custom_jvp
def _run_by_rule(params: Any, *, mode: AbstractMode, loop: Loop, horizon: AbstractHorizon) -> Any:
    del horizon
    return _batched_like(params, loop.run(params, mode.scan))


@_run_by_rule.def_jvp
def _run_by_rule_jvp(primals, tangents, *, mode, loop, horizon):
    (params,), (v,) = primals, tangents
    moved = jax.tree.map(lambda _, t: t is not None, params, v)
    theta, fixed = eqx.partition(params, moved)
    primal, tangent = mode.tangent(theta, fixed, v, loop, horizon)
    return _batched_like(params, primal), tangent


def _batched_like(params: Any, outputs: Any) -> Any:
    """`outputs`, with a batch axis wherever `params` have one, and that axis first.

    Under `vmap` and `jit` JAX takes the batch axes of the results from the function and then expects the rule to have
    the same, unchecked (jax-ml/jax#16374). Here they are the same. Nothing of it is left in the compiled program.
    """
    leaves = [x for x in jax.tree.leaves(params) if eqx.is_array(x) and x.size]
    if not leaves:
        return outputs
    anchor = jnp.any(jnp.stack([x.ravel()[0] == 0 for x in leaves]))

    def alike(y: Any) -> Any:
        if not eqx.is_array(y):
            return y
        y = jax.lax.select(jnp.broadcast_to(anchor, y.shape), y, y)
        return jnp.reshape(y[None], y.shape)  # the batching rule of a reshape moves the axis

    return jax.tree.map(alike, outputs)


def _together(*trees: Any) -> Any:
    """The same, but no part can be computed before all are there.

    JAX takes out of a loop what does not depend on the iteration. In a loop over chunks of tangents that is a part of
    every step of the simulation, kept for all steps at once: the memory of reverse mode.
    """
    arrays, others = eqx.partition(trees, eqx.is_array)
    return eqx.combine(jax.lax.optimization_barrier(arrays), others)


def _plain_scan(body: Any, init: Any, xs: Any) -> tuple[Any, Any]:
    return jax.lax.scan(body, init, xs)


def _run_reverse(mode: AbstractMode, params: Any, loop: Loop, horizon: AbstractHorizon) -> Any:
    if isinstance(horizon, FullHorizon):
        return loop.run(params, mode.scan)  # the ordinary derivative: JAX needs no rule
    return _run_by_rule(params, mode=mode, loop=loop, horizon=horizon)


class ReverseMode(AbstractMode):
    """Let JAX differentiate the loop; a reverse pass stores every step."""

    stores_steps = True

    def scan(self, body, init, xs):
        return _plain_scan(body, init, xs)

    def run(self, params, loop, horizon):
        return _run_reverse(self, params, loop, horizon)

    def tangent(self, theta, fixed, v, loop, horizon):
        return loop.run_with_tangent(theta, fixed, v, horizon, self.scan, columns=False)


class CheckpointedReverseMode(AbstractMode):
    """Reverse mode that stores the state at the start of each segment and recomputes the rest.

    **Arguments:** `segments`, how many; `None` takes about sqrt(T), which makes the peak grow as sqrt(T) (Griewank and
    Walther 2008, section 12, for more levels than the one used here).
    """

    segments: int | None = eqx.field(default=None, static=True)

    stores_steps = True

    def __check_init__(self):
        if self.segments is not None and self.segments < 1:
            raise ValueError(f"CheckpointedReverseMode needs at least one segment, got {self.segments}.")

    def scan(self, body, init, xs):
        steps = jax.tree.leaves(xs)[0].shape[0]
        segments = min(self.segments or max(1, math.isqrt(steps)), max(steps, 1))
        length = steps // segments
        whole = segments * length

        @jax.checkpoint
        def segment(carry, xs):
            return jax.lax.scan(body, carry, xs)

        head = jax.tree.map(lambda x: x[:whole].reshape(segments, length, *x.shape[1:]), xs)
        carry, ys = jax.lax.scan(segment, init, head)
        ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
        if whole == steps:
            return carry, ys
        carry, rest = segment(carry, jax.tree.map(lambda x: x[whole:], xs))
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)

    def run(self, params, loop, horizon):
        return _run_reverse(self, params, loop, horizon)

    def tangent(self, theta, fixed, v, loop, horizon):
        return loop.run_with_tangent(theta, fixed, v, horizon, self.scan, columns=False)


class HybridMode(AbstractMode):
    """Forward mode through the simulator, reverse mode outside (Quera-Bofarull et al. 2023, section 3).

    Its rule computes the Jacobian of the outputs by forward mode beside the simulation, storing nothing over time, and
    returns the product with the tangent. A reverse pass outside therefore keeps the Jacobian alone: (outputs) x (number
    of differentiated parameter values).

    **Arguments:** `chunk`, how many tangents are carried at once, `None` for all. Each chunk simulates again.
    """

    chunk: int | None = eqx.field(default=None, static=True)

    stores_steps = False

    def __check_init__(self):
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"HybridMode needs a chunk of at least one parameter, got {self.chunk}.")

    def scan(self, body, init, xs):
        return _plain_scan(body, init, xs)

    def run(self, params, loop, horizon):
        return _run_by_rule(params, mode=self, loop=loop, horizon=horizon)

    def tangent(self, theta, fixed, v, loop, horizon):
        flat_theta, unravel = ravel_pytree(theta)
        flat_v, _ = ravel_pytree(v)
        size = flat_theta.shape[0]
        chunk = min(self.chunk or size, size)
        chunks = -(-size // chunk)
        basis = jnp.eye(chunks * chunk, size, dtype=flat_theta.dtype).reshape(chunks, chunk, size)

        def some_columns(basis, theta, fixed, loop):
            if chunk == 1:  # without an axis of length one, which CPUs sum over slowly
                one = loop.run_with_tangent(theta, fixed, unravel(basis[0]), horizon, self.scan, columns=False)
                return one[0], jax.tree.map(lambda t: t[..., None], one[1])
            columns = jax.vmap(unravel, out_axes=-1)(basis)
            return loop.run_with_tangent(theta, fixed, columns, horizon, self.scan, columns=True)

        if chunks == 1:
            primal, jacobian = some_columns(basis[0], theta, fixed, loop)
        else:
            primal, parts = jax.lax.map(lambda b: some_columns(*_together(b, theta, fixed, loop)), basis)
            primal = jax.tree.map(lambda x: x[0], primal)
            jacobian = jax.tree.map(lambda j: jnp.moveaxis(j, 0, -2).reshape(*j.shape[1:-1], -1)[..., :size], parts)

        def times_v(column):
            return jnp.tensordot(column, flat_v.astype(column.dtype), axes=1, precision=jax.lax.Precision.HIGHEST)

        return primal, jax.tree.map(times_v, jacobian)
