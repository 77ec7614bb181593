"""Many updates in one compiled program."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from calibrant._devices import gathered
from calibrant.inference._base import State, UpdateRecord


def repeated(
    update: Callable[[State], tuple[State, UpdateRecord]], state: State, updates: int, count: Array
) -> tuple[State, UpdateRecord]:
    """As many updates as `count` says, which is `updates`, with their records.

    The compiler is not told that they are equal: it would make a loop of one into none, with other bits.
    """
    dynamic, static = eqx.partition(state, eqx.is_array)

    def one(dynamic):
        new, record = update(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), record

    def body(i, carry):
        dynamic, records = carry
        dynamic, record = one(dynamic)
        return dynamic, jax.tree.map(lambda all_, x: all_.at[i].set(x), records, record)

    shapes = jax.eval_shape(one, dynamic)[1]
    records = jax.tree.map(lambda x: jnp.zeros((updates, *x.shape), x.dtype), shapes)
    dynamic, records = gathered(jax.lax.fori_loop(0, count, body, (dynamic, records)))
    return eqx.combine(dynamic, static), records
