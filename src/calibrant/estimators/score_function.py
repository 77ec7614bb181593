"""Score function of the draws, with baselines that leave the simulation out.

Williams 1992, Machine Learning 8: 229-256 (REINFORCE). With discrete draws `b` of probability `p(b; theta)`,

    d E[L] / d theta = E[ dL/dtheta | draws fixed ] + E[ sum_t (L_t - B_t) d log p(b_t; theta) / d theta ]

where `b_t` are the draws of step t and `L_t` is the loss, or with a reward to go only that part of it which they can
change, the terms of time t and later (Sutton et al. 2000). The baseline `B_t` is predicted from the other replicates
and from what was seen of the state before the draws, so it changes the variance and not the mean. An ensemble loss is
treated alike: `B` of replicate r is the loss of the ensemble without r.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calibrant._problem import Problem
from calibrant._recording import LogProbability
from calibrant._sampling import Hard
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._baselines import AbstractBaseline, MeanOfOthers


class ScoreFunction(AbstractEstimator):
    """Unbiased for Bernoulli and categorical draws. Its noise does not fall with the number of agents.

    With two or more replicates of each parameter value the baseline is predicted from the other replicates; with one,
    it is the mean over the other parameter values of the batch.

    **Arguments:**

    - `baseline`: `MeanOfOthers()`, or `StateRegression()`, which knows the state before each draw.
    - `reward_to_go`: multiply the score of a draw with the terms of the loss that come after it only. The loss must be
      a sum over times (squared errors and likelihoods are), and `summarise` of the model must not let an output depend
      on later times.
    """

    baseline: AbstractBaseline = eqx.field(default_factory=MeanOfOthers)
    reward_to_go: bool = eqx.field(default=False, static=True)

    unbiased = True
    separable = False

    @property
    def _plain(self) -> bool:
        return isinstance(self.baseline, MeanOfOthers) and not self.reward_to_go

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        if self._plain:
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
            return
        self.baseline.check(replicates)
        check_per_simulation(problem, self, "with a regressed baseline or a reward to go ")

    def losses(self, problem, run, values, seeds):
        replicates = seeds.shape[1]
        trajectories = run(values, seeds, Hard(), LogProbability())
        losses = jax.vmap(problem.evaluate)(trajectories.outputs, values)
        log_prob = trajectories.notes
        assert log_prob is not None
        if not self._plain:
            advantage = jax.vmap(lambda x, v: self._advantage(problem, x, v))(trajectories, values)
            return losses + jnp.sum(score_times(advantage, log_prob), axis=(1, 2)) / replicates, trajectories
        if replicates > 1:
            without = jax.vmap(lambda x, v: _leave_one_out(problem, x, v))(trajectories.outputs, values)
        else:
            without = mean_of_other_finite(losses)[:, None]
        score = score_times(losses[:, None] - without, jnp.sum(log_prob, axis=-1))
        return losses + jnp.sum(score, axis=1), trajectories

    def _advantage(self, problem: Problem, trajectories: Any, values: Mapping[str, Array]):
        """What is still to come of the loss above its baseline, replicates by times."""
        times = trajectories.notes.shape[1]
        if self.reward_to_go:
            to_come = jax.vmap(lambda x: _to_come(problem, x, values, times))(trajectories.outputs)
        else:
            each = loss_of_each(problem, trajectories.outputs, values)
            to_come = jnp.repeat(each[:, None], times, axis=1)
        return to_come - self.baseline.predict(to_come, trajectories.observed)


def score_times(factor: Array, log_prob: Array) -> Array:
    """Zero, whose derivative is `factor` times that of `log_prob`."""
    return jax.lax.stop_gradient(factor) * (log_prob - jax.lax.stop_gradient(log_prob))


def loss_of_each(problem: Problem, outputs: Any, values: Mapping[str, Array]) -> Float[Array, " replicates"]:
    """The loss of each replicate taken alone."""
    return jax.vmap(lambda x: problem.evaluate(jax.tree.map(lambda a: a[None], x), values))(outputs)


def _to_come(problem: Problem, outputs: Any, values: Mapping[str, Array], times: int) -> Float[Array, " times"]:
    """Sums of the loss's terms from each time on; draws of `init`, time 0, come before all of them."""
    terms = problem.terms(outputs, values)
    if terms is None or terms.shape != (times - 1,):
        raise ValueError(
            f"A reward to go needs a loss that is a sum over the times of the simulation, and "
            f"{type(problem.loss).__name__} is none here; leave `reward_to_go` out."
        )
    later = jnp.cumsum(terms[::-1])[::-1]
    return jnp.concatenate([later[:1], later])


def _leave_one_out(problem: Problem, outputs: Any, values: Mapping[str, Array]) -> Float[Array, " replicates"]:
    n = jax.tree.leaves(outputs)[0].shape[0]
    if problem.loss.per_simulation:
        each = loss_of_each(problem, outputs, values)
        return (jnp.sum(each) - each) / (n - 1)
    others = (jnp.arange(n)[:, None] + jnp.arange(1, n)[None, :]) % n
    return jax.vmap(lambda i: problem.evaluate(jax.tree.map(lambda a: a[i], outputs), values))(others)


def mean_of_other_finite(losses: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """For each, the mean of the others; a simulation that failed says nothing about them."""
    finite = jnp.isfinite(losses)
    kept = jnp.where(finite, losses, 0)
    count = jnp.sum(finite) - finite
    return (jnp.sum(kept) - kept) / jnp.maximum(count, 1).astype(losses.dtype)
