"""Score function of the draws, with a leave-one-out baseline.

Williams 1992, Machine Learning 8: 229-256 (REINFORCE); the baseline is that of Mnih and Rezende 2016, arXiv
1602.06725, and Kool, van Hoof, Welling 2019. With discrete draws `b` of probability `p(b; theta)`,

    d E[L] / d theta = E[ dL/dtheta | draws fixed ] + E[ (L - B) d log p(b; theta) / d theta ].

The baseline `B` of a simulation is the loss of the others, which does not depend on its draws, so it changes the
variance and not the mean. An ensemble loss is treated alike: `B` of replicate r is the loss of the ensemble without r.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calibrant._problem import Problem
from calibrant._sampling import Hard
from calibrant.estimators._base import AbstractEstimator


class ScoreFunction(AbstractEstimator):
    """Unbiased for Bernoulli and categorical draws. Its noise does not fall with the number of agents.

    With two or more replicates of each parameter value the baseline is the mean over the other replicates; with one,
    the mean over the other parameter values of the batch.
    """

    unbiased = True
    separable = False

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        if replicates == 1 and batch == 1:
            raise ValueError(
                "ScoreFunction needs at least two simulations for its baseline, got one; raise `replicates`, "
                "or use Pathwise()."
            )
        if 1 < replicates <= problem.loss.min_replicates:
            raise ValueError(
                f"ScoreFunction leaves one replicate out, and {type(problem.loss).__name__} needs "
                f"{problem.loss.min_replicates} of the rest; set `replicates` to {problem.loss.min_replicates + 1}."
            )

    def losses(self, problem, run, values, seeds):
        batch, replicates = seeds.shape[:2]
        trajectories = run(values, seeds, Hard(), True)
        losses = jax.vmap(problem.evaluate)(trajectories.outputs, values)
        assert trajectories.log_prob is not None
        log_prob = jnp.sum(trajectories.log_prob, axis=-1)
        if replicates > 1:
            without = jax.vmap(lambda x, v: _leave_one_out(problem, x, v))(trajectories.outputs, values)
        else:
            without = _mean_of_other_finite(losses)[:, None]
        advantage = jax.lax.stop_gradient(losses[:, None] - without)
        score = log_prob - jax.lax.stop_gradient(log_prob)  # zero, with the score as derivative
        del batch
        return losses + jnp.sum(advantage * score, axis=1), trajectories


def _leave_one_out(problem: Problem, outputs: Any, values: Mapping[str, Array]) -> Float[Array, " replicates"]:
    n = jax.tree.leaves(outputs)[0].shape[0]
    if problem.loss.per_simulation:
        each = jax.vmap(lambda x: problem.evaluate(jax.tree.map(lambda a: a[None], x), values))(outputs)
        return (jnp.sum(each) - each) / (n - 1)
    others = (jnp.arange(n)[:, None] + jnp.arange(1, n)[None, :]) % n
    return jax.vmap(lambda i: problem.evaluate(jax.tree.map(lambda a: a[i], outputs), values))(others)


def _mean_of_other_finite(losses: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """For each, the mean of the others; a simulation that failed says nothing about them."""
    finite = jnp.isfinite(losses)
    kept = jnp.where(finite, losses, 0)
    count = jnp.sum(finite) - finite
    return (jnp.sum(kept) - kept) / jnp.maximum(count, 1).astype(losses.dtype)
