"""`expect`: the expected loss, whose derivative is the chosen estimator."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._devices import divide_simulations, gathered
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._problem import Problem
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan
from calibrant._simulate import Trajectory, check_mode, simulate
from calibrant.estimators import AbstractEstimator, Pathwise


class Expectation(eqx.Module):
    """`losses`, one a parameter value, and `finite`, whether its loss and every output of its simulations are."""

    losses: Float[Array, " batch"]
    finite: Bool[Array, " batch"]


@eqx.filter_jit
def expect(
    problem: Problem,
    values: Mapping[str, Array],
    *,
    seeds: UInt32[Array, "batch replicates 2"],
    estimator: AbstractEstimator | None = None,
    mode: AbstractMode | None = None,
    horizon: AbstractHorizon | None = None,
    simulations_at_once: int | None = None,
) -> Expectation:
    """Estimate the expected loss at a batch of parameter values.

    **Arguments:**

    - `values`: name -> array with a leading batch axis, of the free parameters of model and loss.
    - `seeds`: one a simulation, as `calibrant.seeds(seed, (batch, replicates))` makes them. Repeat them over the batch
      for common random numbers.
    - `estimator`: what `jax.grad` of the losses is; `Pathwise()` by default.
    - `mode`, `horizon`: as in `simulate`.
    - `simulations_at_once`: run at most so many simulations side by side. Each group of a separable estimator is
      differentiated as soon as it has run, loss and all; of others, modes that store the simulation run it again.

    **Raises:** `ValueError` for unknown parameters and for combinations that cannot work.
    """
    estimator = Pathwise() if estimator is None else estimator
    mode = ReverseMode() if mode is None else mode
    horizon = FullHorizon() if horizon is None else horizon
    check_mode(mode)
    values = {name: jnp.asarray(value) for name, value in values.items()}
    if seeds.ndim != 3 or seeds.shape[-1] != 2:
        raise ValueError(
            f"`seeds` has shape (batch, replicates, 2), as seeds(0, (batch, replicates)); got {seeds.shape}."
        )
    batch, replicates = seeds.shape[:2]
    known = (*problem.parameter_names, *problem.loss.parameters)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"There is no parameter '{name}'; the model and the loss have {', '.join(known)}.")
        if value.shape[:1] != (batch,):
            raise ValueError(f"Values of '{name}' have shape {value.shape} but there are {batch} rows of seeds.")
    for name in problem.loss.parameters:
        if name not in values:
            raise ValueError(f"The loss needs a value of its parameter '{name}'.")
    if simulations_at_once is not None and simulations_at_once < 1:
        raise ValueError(f"`simulations_at_once` is at least 1, got {simulations_at_once}.")
    estimator.check(problem, batch, replicates)

    how = _How(estimator, mode, horizon, simulations_at_once)
    rows = 0 if simulations_at_once is None else simulations_at_once // replicates
    if estimator.separable and 0 < rows < batch:
        return gathered(Expectation(*_gradients_in_groups(values, problem, seeds, how, rows)))
    return gathered(Expectation(*_estimate(values, problem, seeds, how)))


class _How(eqx.Module):
    estimator: AbstractEstimator
    mode: AbstractMode
    horizon: AbstractHorizon
    at_once: int | None = eqx.field(static=True)


class _Run(eqx.Module):
    """How an estimator simulates; see `calibrant.estimators.Run`."""

    problem: Problem
    how: _How

    def __call__(
        self,
        values: Mapping[str, Array],
        seeds: Array,
        rule: AbstractSamplingPlan,
        recorder: AbstractRecorder | None = None,
        *,
        each: bool = False,
    ) -> Trajectory:
        seeds = divide_simulations(seeds)
        per_run, common = eqx.partition((rule, recorder), eqx.is_array if each else lambda _: False)
        problem = self.problem

        def one(values, seed, per_run):
            rule, recorder = eqx.combine(per_run, common)
            return simulate(
                problem.model,
                problem.with_values(values),
                seed=seed,
                steps=problem.steps,
                inputs=problem.inputs,
                rule=rule,
                mode=self.how.mode,
                horizon=self.how.horizon,
                recorder=recorder,
            )

        rows, replicates = seeds.shape[:2]
        if self.how.at_once is None or self.how.at_once >= rows * replicates:
            return _vmap(_vmap(one, (None, 0, 0)))(dict(values), seeds, per_run)
        repeated = jax.tree.map(lambda x: jnp.repeat(x[:, None], replicates, axis=1), dict(values))
        return self.map(one, repeated, seeds, per_run)

    def of(self, problem: Problem) -> "_Run":
        return _Run(problem, self.how)

    def map(self, fn: Callable, *arguments: Any) -> Any:
        rows, replicates = jax.tree.leaves(arguments)[0].shape[:2]
        if self.how.at_once is None or self.how.at_once >= rows * replicates:
            return _vmap(_vmap(fn))(*arguments)
        flat = jax.tree.map(lambda x: x.reshape(rows * replicates, *x.shape[2:]), arguments)
        out = _map_in_groups(fn, flat, self.how.at_once, recompute=self.how.mode.stores_steps)
        return jax.tree.map(lambda x: x.reshape(rows, replicates, *x.shape[1:]), out)


def _estimate(values: Mapping[str, Array], problem: Problem, seeds: Array, how: _How) -> tuple[Array, Array]:
    """Losses, and whether they and their simulations are finite."""
    losses, trajectories = how.estimator.losses(problem, _Run(problem, how), values, seeds)
    finite = jnp.isfinite(losses)
    for leaf in jax.tree.leaves(trajectories.outputs):
        if eqx.is_inexact_array(leaf):
            finite &= jnp.all(jnp.isfinite(leaf.reshape(seeds.shape[0], -1)), axis=1)
    return losses, jax.lax.stop_gradient(finite)


def _vmap(fn: Callable, in_axes: tuple[int | None, ...] | None = None) -> Callable:
    """`jax.vmap` over leading axes, and over one of length one without it.

    An axis of length one in the middle of an array stops a CPU from summing it in tiles: sums of large arrays then take
    several times as long, and memory for all that stands in them (`benchmarks/sums.py`).
    """

    def mapped(*arguments: Any) -> Any:
        axes = (0,) * len(arguments) if in_axes is None else in_axes
        along = [x for x, axis in zip(arguments, axes, strict=True) if axis is not None]
        if jax.tree.leaves(along)[0].shape[0] != 1:
            return jax.vmap(fn, axes)(*arguments)
        one = [x if axis is None else jax.tree.map(lambda a: a[0], x) for x, axis in zip(arguments, axes, strict=True)]
        return jax.tree.map(lambda a: a[None], fn(*one))

    return mapped


def _groups(count: int, size: int) -> Array:
    """Indices of groups of equal size; the last is filled with copies of the last index."""
    groups = -(-count // size)
    return jnp.minimum(jnp.arange(groups * size), count - 1).reshape(groups, size)


def _flat(tree, count: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)


@eqx.filter_custom_vjp
def _gradients_in_groups(values, problem: Problem, seeds: Array, how: _How, size: int):
    """`_estimate`, `size` rows at a time, where rows are independent.

    A group is differentiated as soon as it has run, so that neither are its steps kept until the reverse pass nor is it
    run again there: the reverse pass multiplies gradients of the losses, which are as small as the values.
    """

    def group(i):
        return _estimate(jax.tree.map(lambda x: x[i], values), problem, seeds[i], how)

    return _flat(jax.lax.map(group, _groups(seeds.shape[0], size)), seeds.shape[0])


@_gradients_in_groups.def_fwd
def _forward(perturbed, values, problem, seeds, how, size):
    del perturbed

    def group(i):
        def losses(values):
            return _estimate(values, problem, seeds[i], how)

        out, pull_back, finite = jax.vjp(losses, jax.tree.map(lambda x: x[i], values), has_aux=True)
        return out, finite, pull_back(jnp.ones_like(out))[0]

    losses, finite, gradients = _flat(jax.lax.map(group, _groups(seeds.shape[0], size)), seeds.shape[0])
    return (losses, finite), gradients


@_gradients_in_groups.def_bwd
def _backward(gradients, cotangents, perturbed, values, problem, seeds, how, size):
    del perturbed, values, problem, seeds, how, size
    return jax.tree.map(lambda g: cotangents[0].reshape(-1, *(1,) * (g.ndim - 1)) * g, gradients)


def _map_in_groups(fn, arguments: tuple, size: int, *, recompute: bool):
    """`vmap(fn)(*arguments)`, `size` at a time; `recompute` forgets a group's intermediates for the reverse pass."""
    count = jax.tree.leaves(arguments)[0].shape[0]

    def group(index):
        return _vmap(fn)(*jax.tree.map(lambda x: x[index], arguments))

    out = jax.lax.map(jax.checkpoint(group) if recompute else group, _groups(count, size))
    return _flat(out, count)
