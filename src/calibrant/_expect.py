"""`expect`: the expected loss, whose derivative is the chosen estimator."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._problem import Problem
from calibrant._sampling import AbstractSamplingRule
from calibrant._simulate import Trajectory, simulate
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
    - `simulations_at_once`: run at most so many simulations side by side. In modes that store the simulation the
      reverse pass then runs each group again.

    **Raises:** `ValueError` for unknown parameters and for combinations that cannot work.
    """
    estimator = Pathwise() if estimator is None else estimator
    mode = ReverseMode() if mode is None else mode
    horizon = FullHorizon() if horizon is None else horizon
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

    def run(values: Mapping[str, Array], seeds: Array, rule: AbstractSamplingRule, record: bool) -> Trajectory:
        def one(values, seed):
            return simulate(
                problem.model,
                problem.with_values(values),
                seed=seed,
                steps=problem.steps,
                inputs=problem.inputs,
                rule=rule,
                mode=mode,
                horizon=horizon,
                record=record,
            )

        if simulations_at_once is None or simulations_at_once >= batch * replicates:
            return jax.vmap(jax.vmap(one, (None, 0)))(values, seeds)
        repeated = jax.tree.map(lambda x: jnp.repeat(x, replicates, axis=0), dict(values))
        flat = _map_in_groups(one, repeated, seeds.reshape(-1, 2), simulations_at_once, recompute=mode.stores_steps)
        return jax.tree.map(lambda x: x.reshape(batch, replicates, *x.shape[1:]), flat)

    losses, trajectories = estimator.losses(problem, run, values, seeds)
    finite = jnp.isfinite(losses)
    for leaf in jax.tree.leaves(trajectories.outputs):
        if eqx.is_inexact_array(leaf):
            finite &= jnp.all(jnp.isfinite(leaf.reshape(batch, -1)), axis=1)
    return Expectation(losses, jax.lax.stop_gradient(finite))


def _map_in_groups(fn, values, seeds, size: int, *, recompute: bool):
    """`vmap(fn)(values, seeds)`, `size` at a time; `recompute` forgets a group's intermediates for the reverse pass."""
    count = seeds.shape[0]
    groups = -(-count // size)
    # The last group is filled with copies of the last simulation, which are dropped.
    index = jnp.minimum(jnp.arange(groups * size), count - 1).reshape(groups, size)

    def group(index):
        return jax.vmap(fn)(jax.tree.map(lambda x: x[index], values), seeds[index])

    out = jax.lax.map(jax.checkpoint(group) if recompute else group, index)
    return jax.tree.map(lambda x: x.reshape(groups * size, *x.shape[2:])[:count], out)
