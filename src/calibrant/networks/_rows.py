"""The linear maps between agents and venues, as JAX primitives that are closed under differentiation.

`sum_rows(x, venue_of)` adds rows of agents up by venue, `take_rows(y, venue_of)` hands rows of venues out to agents,
and each is the transpose of the other. Left to itself, JAX moves the axis of a `vmap` to the front, and turns the
transpose of a gather into a scatter that no longer knows that its indices are sorted. Here a mapped axis goes to the
back, so that the tangents of one agent lie side by side and travel as one row, and each direction of both AD modes is
again one of these two.

`exact_sum_rows` is `sum_rows` in fixed point: its value does not depend on the order in which agents are added, nor on
the devices they live on. Its derivative is that of `sum_rows`, in floating point.

Where agents are divided over devices each device works on its own agents. Venues are then either whole on every device
(contributions are added up over all), or laid out in blocks as agents are (see `Venues`), and nothing is exchanged.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from calibrant._devices import AGENTS
from calibrant._jax import Primitive, ShapedArray, define, is_zero, zero_of

_sum_p = Primitive("calibrant_sum_rows")
_exact_p = Primitive("calibrant_exact_sum_rows")
_take_p = Primitive("calibrant_take_rows")


@dataclasses.dataclass(frozen=True)
class Venues:
    """What is known of the venues of an index before any numbers are.

    `rows`: how many. `is_sorted`: whether agents stand in order of venues, in every block. `largest`: members of the
    largest, from which fixed point knows when it would overflow. `group_size`: of groups of equal size in which agents
    stand in order (the last may be smaller), if they do. `blocks`: agents and venues are laid out in so many parts of
    equal length, and every agent's venue is in the agent's own part. `cut`: the last so many venues of every part are
    copies of venues with agents in more than one.
    """

    rows: int
    is_sorted: bool = False
    largest: int = 1
    group_size: int | None = None
    blocks: int = 1
    cut: int = 0


def sum_rows(x: Array, index: Int[Array, " agents"], venues: Venues) -> Array:
    """Rows of agents to rows of venues: `out[v] = sum of x[i] over i with index[i] == v`.

    `x` has shape (agents, *columns); the result (venues, *columns). Indices from `venues.rows` on are left out.
    """
    return combined(_sum_p.bind(x, index, venues=venues, mesh=jax.sharding.get_abstract_mesh()), venues)


def exact_sum_rows(x: Array, index: Int[Array, " agents"], venues: Venues, *, wide: bool = True) -> Array:
    """`sum_rows` in fixed point: 30 bits for what the largest venue could hold of the largest |x| of a column.

    What that leaves of every value is added up in a second word, which takes as long again where anything is left; not
    with `wide=False`, nor in float64, which has 62 bits. Sums of zeros and ones are exact up to 2^30 members a venue,
    but for the last conversion to floating point. A column with a value that is not finite gives `nan` everywhere.
    Agents without a venue count for nothing; integers are added up as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return sum_rows(x.astype(jnp.int32) if x.dtype == bool else x, index, venues)
    if x.dtype.itemsize < 4:
        return exact_sum_rows(x.astype(jnp.float32), index, venues, wide=wide).astype(x.dtype)
    return _exact_p.bind(x, index, venues=venues, wide=wide, mesh=mesh)


def take_rows(y: Array, index: Int[Array, " agents"], venues: Venues) -> Array:
    """Rows of venues to rows of agents: `out[i] = y[index[i]]`, zero for indices from `venues.rows` on."""
    return _take_p.bind(y, index, venues=venues, mesh=jax.sharding.get_abstract_mesh())


def combined(y: Array, venues: Venues) -> Array:
    """Rows of venues in which the copies of a venue that is cut are the sum of them all."""
    if not venues.cut:
        return y
    parts = y.reshape(venues.blocks, -1, *y.shape[1:])
    whole, copies = parts[:, : -venues.cut], parts[:, -venues.cut :]
    copies = jnp.broadcast_to(jnp.sum(copies, axis=0, dtype=y.dtype), copies.shape)
    return jnp.concatenate([whole, copies], axis=1).reshape(y.shape)


def _sum_here(x: Array, index: Array, rows: int, venues: Venues) -> Array:
    if venues.group_size is not None:
        missing = rows * venues.group_size - x.shape[0]
        padded = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
        return jnp.sum(padded.reshape(rows, venues.group_size, *x.shape[1:]), axis=1)
    zeros = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    return zeros.at[index].add(x, indices_are_sorted=_in_order(rows, venues), mode="drop")


def _take_here(y: Array, index: Array, rows: int, venues: Venues) -> Array:
    if rows == 0:
        return jnp.zeros((*index.shape, *y.shape[1:]), y.dtype)
    if venues.group_size is not None:
        spread = jnp.broadcast_to(y[:, None], (rows, venues.group_size, *y.shape[1:]))
        return spread.reshape(rows * venues.group_size, *y.shape[1:])[: index.shape[0]]
    return y.at[index].get(indices_are_sorted=_in_order(rows, venues), mode="fill", fill_value=0)


def _in_order(rows: int, venues: Venues) -> bool:
    return venues.is_sorted and rows * venues.blocks == venues.rows  # at most one block


def _on_devices(x: Array, index: Array, venues: Venues, mesh: Any, *, to_venues: bool) -> Array:
    """`_sum_here` or `_take_here`, every device its own agents."""
    here = _sum_here if to_venues else _take_here
    devices = mesh.shape.get(AGENTS, 1)
    if devices == 1 or index.shape[0] % devices:
        return here(x, index, venues.rows, venues)
    divided = venues.blocks % devices == 0
    if not divided:
        venues = dataclasses.replace(venues, group_size=None)  # groups may cross from one device to the next

    def local(x, index, device):  # its number comes as data: not every mesh has `jax.lax.axis_index`
        rows = venues.rows
        if divided:
            rows = venues.rows // devices
            index = index - device * rows
        out = here(x, index, rows, venues)
        return jax.lax.psum(out, AGENTS) if to_venues and not divided else out

    of_agents, of_venues = PartitionSpec(AGENTS), PartitionSpec(AGENTS) if divided else PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        axis_names={AGENTS},
        in_specs=(of_agents if to_venues else of_venues, of_agents, of_agents),
        out_specs=of_venues if to_venues else of_agents,
        check_vma=False,
    )(x, index, jnp.arange(devices, dtype=index.dtype))


def _sum_impl(x, index, *, venues, mesh):
    return _on_devices(x, index, venues, mesh, to_venues=True)


def _take_impl(y, index, *, venues, mesh):
    return _on_devices(y, index, venues, mesh, to_venues=False)


def _exact_impl(x, index, *, venues, wide, mesh):
    double = x.dtype == jnp.float64
    integer, bits = (jnp.int64, 62) if double else (jnp.int32, 30)
    member = (index < venues.rows).reshape(-1, *[1] * (x.ndim - 1))
    # By a logical sum: across devices, a maximum may lose what is not a number.
    finite = ~jnp.any(member & ~jnp.isfinite(x), axis=0)
    most = jnp.max(jnp.where(member & jnp.isfinite(x), jnp.abs(x), 0), axis=0, initial=0)
    _, exponent = jnp.frexp(jnp.where(most > 0, most, 1))  # most < 2^exponent
    of_venue = (venues.largest - 1).bit_length()
    # Powers of two, by which numbers are multiplied without rounding; no sum reaches 2^bits. In two factors, each of
    # which is a float.
    power = bits - of_venue - exponent
    first, second = power // 2, power - power // 2

    def times(x, *powers):
        for k in powers:
            x = x * jnp.ldexp(jnp.ones_like(most), k)
        return x

    def total(x):
        return combined(_sum_impl(jnp.rint(x).astype(integer), index, venues=venues, mesh=mesh), venues).astype(x.dtype)

    scaled = times(x, first, second)
    out = times(total(scaled), -first, -second)
    if wide and not double:
        left = scaled - jnp.rint(scaled)  # exactly, and at most 1/2
        more = bits - of_venue
        out += jax.lax.cond(
            jnp.any(member & (left != 0)),
            lambda: times(total(left * 2.0**more), -first, -second) * 2.0**-more,
            lambda: jnp.zeros_like(out),
        )
    return jnp.where(finite, out, jnp.nan)


def _define(primitive: Primitive, impl: Any, *, linear: Primitive, transpose: Primitive, to_venues: bool) -> None:
    def abstract(x, index, *, venues, **how):
        del how
        length = venues.rows if to_venues else index.shape[0]
        return ShapedArray((length, *x.shape[1:]), x.dtype)

    def jvp(primals, tangents, **params):
        x, index = primals
        out = primitive.bind(x, index, **params)
        dx = tangents[0]
        zero = is_zero(dx)
        if zero:
            return out, zero_of(out)
        if primitive is linear:
            return out, primitive.bind(dx, index, **params)
        venues, mesh = params["venues"], params["mesh"]
        return out, combined(linear.bind(dx, index, venues=venues, mesh=mesh), venues)

    def transposed(cotangent, x, index, **params):
        del x
        zero = is_zero(cotangent)
        return (None if zero else transpose.bind(cotangent, index, **params)), None

    def batched(args, dims, **params):
        (x, index), (of_x, of_index) = args, dims
        if of_index is None:
            return primitive.bind(jnp.moveaxis(x, of_x, -1), index, **params), x.ndim - 1
        axes = tuple(dims)
        # Rarely more than a test: every element has venues of its own.
        whole = {**params, "mesh": jax.sharding.AbstractMesh((), ())}
        return jax.vmap(functools.partial(impl, **whole), axes)(x, index), 0

    static = ("venues", "mesh") if primitive is linear else ("venues", "mesh", "wide")
    of_linear = transposed if primitive is linear else None
    define(primitive, impl, static=static, abstract=abstract, jvp=jvp, transpose=of_linear, batch=batched)


_define(_sum_p, _sum_impl, linear=_sum_p, transpose=_take_p, to_venues=True)
_define(_exact_p, _exact_impl, linear=_sum_p, transpose=_take_p, to_venues=True)
_define(_take_p, _take_impl, linear=_take_p, transpose=_sum_p, to_venues=False)
