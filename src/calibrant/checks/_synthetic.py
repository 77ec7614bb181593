"""Synthetic data sets, masked as the data are, and the problems of calibrating to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._simulate import simulate
from calibrant.losses import AbstractLoss, CustomLoss

_AT_ONCE = 20

#: `(problem, values, seed) -> problem`: one synthetic problem, where simulated outputs alone do not make one.
Make = Callable[[Problem, Mapping[str, Array], Array], Problem]


def as_data(outputs: Any, data: Any) -> Any:
    """Simulated outputs in the form of data: the same streams, blank where those are.

    **Raises:** `ValueError` where outputs have no such stream, or another shape.
    """
    if isinstance(data, Mapping) and isinstance(outputs, Mapping):
        missing = [name for name in data if name not in outputs]
        if missing:
            raise ValueError(f"The model simulates no '{missing[0]}', which the data have; it cannot be checked.")
        return {name: as_data(outputs[name], data[name]) for name in data}
    if jax.tree.structure(outputs) != jax.tree.structure(data):
        raise ValueError("The model's outputs and the data are built differently; give `make`, which builds a problem.")

    def one(x: Array, y: Array) -> Array:
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"The model simulates shape {jnp.shape(x)} and the data have {jnp.shape(y)}; give `make`, which builds "
                "a problem from simulated data."
            )
        return jnp.where(jnp.isfinite(y), x, jnp.nan).astype(y.dtype)

    return jax.tree.map(one, outputs, data)


def refuse_captured(loss: AbstractLoss, data: Any) -> None:
    """Refuse a loss that holds the data themselves and does not say how it is rebuilt for others.

    **Raises:** `ValueError`.
    """
    observed = [np.asarray(x) for x in jax.tree.leaves(data)]

    def is_data(x: Any) -> bool:
        if not isinstance(x, (np.ndarray, jax.Array)) or x.ndim == 0:
            return False
        return any(x.shape == y.shape and np.array_equal(np.asarray(x), y, equal_nan=True) for y in observed)

    def parts(node: AbstractLoss) -> list[AbstractLoss]:
        inner = [getattr(node, "loss", None), *getattr(node, "losses", {}).values()]
        return [node, *(p for x in inner if isinstance(x, AbstractLoss) for p in parts(x))]

    for part in parts(loss):
        held = [x for x in jax.tree.leaves(vars(part)) if not isinstance(x, AbstractLoss)]
        if isinstance(part, CustomLoss):
            held += [cell.cell_contents for cell in getattr(part.fn, "__closure__", None) or ()]
        if type(part).with_data is AbstractLoss.with_data and any(is_data(x) for x in held):
            raise ValueError(
                f"{type(part).__name__} holds the data it was built from, so it cannot be used for synthetic data; use "
                "the `data` it is called with, or give it a method `with_data(data)`."
            )


@compiled
def simulate_data(problem: Problem, values: Mapping[str, Array], words: Array, keys: Array) -> PyTree[Array]:
    """Data simulated at rows of values, with the observation noise of the loss, masked."""

    def one(x):
        values, words, key = x
        params = problem.with_values(values)
        out = simulate(problem.model, params, seed=words, steps=problem.steps, inputs=problem.inputs).outputs
        return as_data(problem.loss.observe(key, out, values), problem.data)

    return jax.lax.map(one, (dict(values), words, keys), batch_size=min(_AT_ONCE, words.shape[0]))


def with_data(problem: Problem, data: Any) -> Problem:
    """The problem of other data, its loss rebuilt for them.

    **Raises:** `ValueError` for data that the loss refuses.
    """
    return Problem(
        problem.model,
        data,
        problem.loss.with_data(data),
        params=problem.params,
        inputs=problem.inputs,
        steps=problem.steps,
    )


class Problems(eqx.Module):
    """Many problems of one structure: what differs among them, with a leading axis, and what does not."""

    each: Problem
    common: Problem

    def of(self, each: Problem) -> Problem:
        """One of them, from a slice of `each`."""
        return eqx.combine(each, self.common)


def stacked(problems: Sequence[Problem], like: Problem) -> Problems:
    """Problems as one PyTree.

    **Raises:** `ValueError` where they differ in more than numbers.
    """
    structure, leaves = jax.tree.structure(like), jax.tree.leaves(like)

    def differs_from(x: Any, template: Any) -> bool:
        if x is template:
            return False
        if eqx.is_array(x) and eqx.is_array(template) and x.shape == template.shape:
            return True
        if type(x) is type(template) and not eqx.is_array(x) and x == template:
            return False
        raise ValueError("A synthetic problem is built differently from the run's; only numbers in arrays may differ.")

    columns: list[Any] = [[] for _ in leaves]
    for problem in problems:
        if jax.tree.structure(problem) != structure:
            raise ValueError(
                "A synthetic problem is built differently from the run's; only numbers in arrays may differ."
            )
        for column, leaf in zip(columns, jax.tree.leaves(problem), strict=True):
            column.append(leaf)
    differs = [any(differs_from(x, t) for x in column) for column, t in zip(columns, leaves, strict=True)]
    each = [jnp.stack(column) if d else None for column, d in zip(columns, differs, strict=True)]
    common = [None if d else x for x, d in zip(leaves, differs, strict=True)]
    return Problems(jax.tree.unflatten(structure, each), jax.tree.unflatten(structure, common))
