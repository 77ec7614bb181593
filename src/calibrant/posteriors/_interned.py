"""Functions inside flows, made once: so that the second calibration of a process compiles nothing anew.

Bijections keep closures, which Python takes for different functions each time they are made, and JAX with them.
"""

import functools
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np

_FOUND: dict[Any, list[Any]] = {}
_KEPT = 16


def interned(flow: Any) -> Any:
    """The flow, with the functions of an earlier one in the place of its own where they are equal."""
    arrays, rest = eqx.partition(flow, eqx.is_array)
    found = _FOUND.setdefault(jax.tree.structure(rest), [])
    for earlier in found:
        if _equal(jax.tree.leaves(rest), jax.tree.leaves(earlier)):
            return eqx.combine(arrays, earlier)
    found.append(rest)
    del found[:-_KEPT]
    return flow


def _equal(one: Any, two: Any) -> bool:
    """Whether two are the same, functions by their code and all that they close over."""
    if one is two:
        return True
    if type(one) is not type(two):
        return False
    if isinstance(one, types.FunctionType):
        if one.__code__ is not two.__code__ or one.__globals__ is not two.__globals__:
            return False
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (one, two)]
        return _equal(
            [cells[0], one.__defaults__, one.__kwdefaults__], [cells[1], two.__defaults__, two.__kwdefaults__]
        )
    if isinstance(one, functools.partial):
        return _equal([one.func, one.args, one.keywords], [two.func, two.args, two.keywords])
    if isinstance(one, (jax.Array, np.ndarray)):
        return one.dtype == two.dtype and np.array_equal(one, two)
    leaves = [jax.tree.flatten(x) for x in (one, two)]
    if not jax.tree_util.all_leaves([one]):
        return leaves[0][1] == leaves[1][1] and all(map(_equal, leaves[0][0], leaves[1][0]))
    try:
        return bool(one == two)
    except (TypeError, ValueError):
        return False
