"""The two linear maps between agents and venues, as JAX primitives that are each other's transpose.

`sum_rows(x, venue_of)` adds rows of agents up by venue, `take_rows(y, venue_of)` hands rows of venues out to agents.
Left to itself, JAX moves the axis of a `vmap` to the front, and turns the transpose of a gather into a scatter that
no longer knows that its indices are sorted. Here a mapped axis goes to the back, so that the tangents of one agent lie
side by side and travel as one row, and each direction of both AD modes is again one of these two.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Int

_sum_p = Primitive("calibrant_sum_rows")
_take_p = Primitive("calibrant_take_rows")


def sum_rows(x: Array, index: Int[Array, " agents"], *, rows: int, is_sorted: bool) -> Array:
    """Rows of agents to rows of venues: `out[v] = sum of x[i] over i with index[i] == v`.

    `x` has shape (agents, *columns); the result (rows, *columns). Indices from `rows` on are left out.
    """
    return _sum_p.bind(x, index, rows=rows, is_sorted=is_sorted)


def take_rows(y: Array, index: Int[Array, " agents"], *, rows: int, is_sorted: bool) -> Array:
    """Rows of venues to rows of agents: `out[i] = y[index[i]]`, zero for indices from `rows` on."""
    return _take_p.bind(y, index, rows=rows, is_sorted=is_sorted)


def _sum_impl(x, index, *, rows, is_sorted):
    zeros = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    return zeros.at[index].add(x, indices_are_sorted=is_sorted, mode="drop")


def _take_impl(y, index, *, rows, is_sorted):
    if rows == 0:
        return jnp.zeros((*index.shape, *y.shape[1:]), y.dtype)
    return y.at[index].get(indices_are_sorted=is_sorted, mode="fill", fill_value=0)


def _define(primitive: Primitive, impl: Any, *, transpose: Primitive, to_venues: bool) -> None:
    def abstract(x, index, *, rows, is_sorted):
        del is_sorted
        length = rows if to_venues else index.shape[0]
        return ShapedArray((length, *x.shape[1:]), x.dtype)

    def jvp(primals, tangents, **params):
        x, index = primals
        out = primitive.bind(x, index, **params)
        dx = tangents[0]
        zero = isinstance(dx, ad.Zero)
        if zero:
            return out, ad.Zero.from_primal_value(out)  # pyright: ignore[reportAttributeAccessIssue]
        return out, primitive.bind(dx, index, **params)

    def transposed(cotangent, x, index, **params):
        del x
        zero = isinstance(cotangent, ad.Zero)
        return (None if zero else transpose.bind(cotangent, index, **params)), None

    def batched(args, dims, **params):
        (x, index), (of_x, of_index) = args, dims
        if of_index is None:
            return primitive.bind(jnp.moveaxis(x, of_x, -1), index, **params), x.ndim - 1
        axes = tuple(dims)
        return jax.vmap(functools.partial(impl, **params), axes)(x, index), 0

    primitive.def_impl(jax.jit(impl, static_argnames=("rows", "is_sorted")))
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))


_define(_sum_p, _sum_impl, transpose=_take_p, to_venues=True)
_define(_take_p, _take_impl, transpose=_sum_p, to_venues=False)
