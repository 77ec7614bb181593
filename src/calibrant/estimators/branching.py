"""Branching: simulations in which one draw came out differently, run beside the original on the same random numbers.

The pruned stochastic triple of Arya, Schauer, Schaefer, Rackauckas 2022, arXiv 2210.08572 (StochasticAD.jl). For draws
`b_i` of categories with probabilities `p_i`,

    d E[L] / d theta = E[ dL/dtheta | draws fixed ] + E[ sum_i sum_{j != b_i} (L(b_i -> j) - L) dp_ij / d theta ]

where `L(b_i -> j)` is the loss of the simulation in which draw `i` is `j` and everything later follows from that. (For
a Bernoulli draw: the difference between 1 and 0 times `dp`, whichever came out. The original weighs the outcomes by
`dp / (1 - p)` from below alone; the expectation is the same.) Of the sum over all draws, `branches` terms are picked at
random, for all parameters at once: half by importance `p_ij`, half the same but with an equal share for each site.

With `a_i = dL/db_i`, the straight-through adjoint of draw `i`, the same is

    E[ straight-through gradient ] + E[ sum_i sum_{j != b_i} (L(b_i -> j) - L - a_i (j - b_i)) dp_ij / d theta ]

for any adjoints, and so however biased straight-through is: the sum over all alternatives of `a_i (j - b_i) dp_ij` is
`sum_i a_i dp_i`, since `sum_j dp_ij = 0`, and that with `dL/dtheta` is the straight-through gradient. (Weights from
below alone would have another sum.) What is picked is then only what a flip does beyond its linear effect.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from calibrant._loop import Loop
from calibrant._problem import Problem
from calibrant._randomness import seeds as derived_seeds
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan, AbstractSamplingRule, Draw, Hard, StraightThrough
from calibrant._threefry import threefry2x32, uniform_from_bits
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._sites import Site, sites
from calibrant.estimators.enumeration import outer
from calibrant.estimators.score_function import loss_of_each, score_times

_CHOICE = 0x42524E43


class Branching(AbstractEstimator):
    """Unbiased for Bernoulli and categorical draws. Its noise falls with the number of branches, not of agents.

    A simulation costs `branches + 2` simulations, one of them with a derivative; `linear` adds two, both with one.

    **Arguments:**

    - `branches`: how many draws of each simulation are changed, each in a simulation of its own.
    - `linear`: add the straight-through gradient, and take from each difference what straight-through says of it.
    """

    branches: int = eqx.field(default=16, static=True)
    linear: bool = eqx.field(default=False, static=True)

    unbiased = True
    separable = False

    def __check_init__(self):
        if self.branches < 1:
            raise ValueError(f"Branching needs at least one branch, got {self.branches}.")

    def runs(self, problem, dim):
        return self.branches + (4 if self.linear else 2)

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        outer(sites(problem))
        check_per_simulation(problem, self)

    def losses(self, problem, run, values, seeds):
        batch, replicates = seeds.shape[:2]
        k = self.branches
        found = outer(sites(problem))
        fixed = jax.lax.stop_gradient(dict(values))
        words = jax.vmap(jax.vmap(lambda s: derived_seeds(s, (), stream=_CHOICE)))(seeds)
        candidates = run(fixed, seeds, Hard(), _Candidates(found, k, words), each=True).notes
        picks, probability = jax.vmap(jax.vmap(lambda c, w: _pick(c, w, k)))(candidates, words)

        hard = run(values, seeds, Hard(), _Change(found, picks), each=True)
        original = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(hard.outputs, values)

        one_a_branch = jax.tree.map(lambda x: x.reshape(batch, replicates * k, *x.shape[3:]), picks)
        flipped = run(fixed, jnp.repeat(seeds, k, axis=1), _Flipped(found, one_a_branch), each=True)
        branches = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(flipped.outputs, fixed)
        difference = branches.reshape(batch, replicates, k) - original[:, :, None]
        if self.linear:
            repeated = jax.tree.map(lambda x: jnp.repeat(x[:, None], replicates, axis=1), fixed)
            difference -= run.map(lambda v, s, p: _linear(problem, found, v, s, p), repeated, seeds, picks)

        assert hard.notes is not None
        change = jnp.sum(hard.notes, axis=2)  # over times: (batch, replicates, branches)
        weight = jnp.where(probability > 0, difference / jnp.where(probability > 0, probability, 1), 0)
        trajectories = run(values, seeds, StraightThrough()) if self.linear else hard
        losses = jax.vmap(problem.evaluate)(trajectories.outputs, values)
        return losses + jnp.mean(score_times(weight, change), axis=(1, 2)), trajectories


class _Picks(eqx.Module):
    """Draws: at which time, site, agent, and what they become instead."""

    time: Int[Array, "*batch"]
    site: Int[Array, "*batch"]
    agent: Int[Array, "*batch"]
    other: Int[Array, "*batch"]


def _index(found: tuple[Site, ...], draw: Draw) -> int:
    return next(i for i, site in enumerate(found) if site.draws(draw))


def _uniforms(words: UInt32[Array, "2"], first: Any, second: Any, n: int) -> Float[Array, " n"]:
    key = threefry2x32((words[0], words[1]), (jnp.asarray(first).astype(jnp.uint32), jnp.uint32(second)))
    return uniform_from_bits(
        threefry2x32(key, (jnp.arange(n, dtype=jnp.uint32), jnp.uint32(0)))[0], jnp.result_type(float)
    )


class _Candidates(AbstractRecorder):
    """For each site the importance of all of its alternatives, and `count` of them drawn by it."""

    found: tuple[Site, ...] = eqx.field(static=True)
    count: int = eqx.field(static=True)
    words: UInt32[Array, "*batch 2"]

    def zero(self):
        shape = (len(self.found), self.count)
        return {
            "total": jnp.zeros(len(self.found)),
            "importance": jnp.zeros(shape),
            "agent": jnp.zeros(shape, jnp.int32),
            "other": jnp.zeros(shape, jnp.int32),
        }

    def _note(self, draw: Draw, importance: Float[Array, "k *n"], other: Int[Array, "k *n"]):
        i = _index(self.found, draw)
        flat = importance.reshape(-1)
        cumulative = jnp.cumsum(flat)
        u = _uniforms(self.words, draw.time, i, self.count).astype(flat.dtype)
        chosen = jnp.minimum(jnp.searchsorted(cumulative, u * cumulative[-1], side="right"), flat.shape[0] - 1)
        agents = math.prod(importance.shape[1:])
        zero = self.zero()
        return {
            "total": zero["total"].at[i].set(cumulative[-1]),
            "importance": zero["importance"].at[i].set(flat[chosen]),
            "agent": zero["agent"].at[i].set((chosen % agents).astype(jnp.int32)),
            "other": zero["other"].at[i].set(other.reshape(-1)[chosen]),
        }

    def bernoulli(self, draw, sample, p, where):
        p = jnp.clip(p, 0, 1)
        importance = (p * (1 - p) + 1e-6) * (where > 0)
        return self._note(draw, importance[None], (sample <= 0).astype(jnp.int32)[None])

    def categorical(self, draw, sample, p):
        k = sample.shape[0]
        other = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32).reshape(-1, *[1] * (sample.ndim - 1)), sample.shape)
        return self._note(draw, (p + 1e-6) * (1 - sample), other)


def _pick(candidates: Any, words: Array, k: int) -> tuple[_Picks, Float[Array, " k"]]:
    """`k` of the candidates of all times and sites, and the probability of each.

    Half of the chances are spread by importance over all draws, and half evenly over sites: a site of few draws, such
    as the first cases of an epidemic, would else be met once in thousands of picks, and its gradient be zero until
    then.
    """
    total = candidates["total"]  # times x sites
    of_site = jnp.sum(total, axis=0)
    occurs = of_site > 0
    evenly = jnp.where(occurs, 1 / jnp.where(occurs, of_site, 1), 0) / jnp.maximum(jnp.sum(occurs), 1)
    scale = 0.5 * (1 / jnp.sum(of_site) + evenly)  # of importance to chance, for each site
    chances = total * scale
    cumulative = jnp.cumsum(chances.reshape(-1))
    u = _uniforms(words, jnp.uint32(0xFFFFFFFF), 0xFFFFFFFF, k).astype(total.dtype)
    place = jnp.minimum(jnp.searchsorted(cumulative, u * cumulative[-1], side="right"), cumulative.shape[0] - 1)
    time, site = jnp.divmod(place.astype(jnp.int32), total.shape[1])
    each = jnp.arange(k)
    picks = _Picks(time, site, candidates["agent"][time, site, each], candidates["other"][time, site, each])
    return picks, candidates["importance"][time, site, each] * scale[site] / cumulative[-1]


class _Change(AbstractRecorder):
    """Of each pick, the probability of what it becomes: zero elsewhere."""

    found: tuple[Site, ...] = eqx.field(static=True)
    picks: _Picks

    def zero(self):
        return jnp.zeros(self.picks.time.shape[-1:])

    def _note(self, draw: Draw, probabilities: Float[Array, "k *n"]):
        here = (self.picks.site == _index(self.found, draw)) & (self.picks.time == draw.time)
        flat = probabilities.reshape(probabilities.shape[0], -1)
        agent = jnp.minimum(self.picks.agent, flat.shape[1] - 1)
        return jnp.where(here, flat[jnp.minimum(self.picks.other, flat.shape[0] - 1), agent], 0)

    def bernoulli(self, draw, sample, p, where):
        return self._note(draw, jnp.stack([1 - p, p]))

    def categorical(self, draw, sample, p):
        return self._note(draw, jnp.broadcast_to(p, sample.shape))


def _linear(
    problem: Problem, found: tuple[Site, ...], values: dict[str, Array], seed: Array, picks: _Picks
) -> Float[Array, " k"]:
    """What straight-through says that each pick changes of the loss of one simulation."""
    params = problem.with_values(values)

    def loss(probes):
        plan = _Probed(found, picks, probes)
        observed = Loop(problem.model, problem.inputs, seed, plan, problem.steps, None).run(params, jax.lax.scan)
        outputs = problem.model.summarise(params, observed[0])
        return problem.evaluate(jax.tree.map(lambda x: jnp.asarray(x)[None], outputs), values)

    return jax.grad(loss)(jnp.zeros(picks.time.shape, jax.tree.leaves(values)[0].dtype))


class _Probed(AbstractSamplingPlan):
    """Straight-through, plus `probes` times the change of each pick: zero, and what the pick does as its gradient."""

    found: tuple[Site, ...] = eqx.field(static=True)
    picks: _Picks
    probes: Float[Array, " k"]

    hard = True

    def of(self, draw):
        here = (self.picks.site == _index(self.found, draw)) & (self.picks.time == draw.time)
        return _ProbedDraw(self.picks, jnp.where(here, self.probes, 0))


class _ProbedDraw(AbstractSamplingRule):
    picks: _Picks
    probes: Float[Array, " k"]

    hard = True

    def _probed(self, sample: Float[Array, "*n"], other: Array, agent: Array, flat: Array) -> Array:
        change = jax.lax.stop_gradient(other - flat[..., agent])
        return flat.at[..., agent].add(self.probes.astype(flat.dtype) * change).reshape(sample.shape)

    def bernoulli(self, p, where, u):
        sample = StraightThrough().bernoulli(p, where, u)
        flat = sample.reshape(-1)
        return self._probed(sample, self.picks.other, jnp.minimum(self.picks.agent, flat.shape[0] - 1), flat)

    def categorical(self, p, u, exponentials):
        sample = StraightThrough().categorical(p, u, exponentials)
        flat = sample.reshape(sample.shape[0], -1)
        other = jax.nn.one_hot(self.picks.other, flat.shape[0], dtype=flat.dtype, axis=0)
        return self._probed(sample, other, jnp.minimum(self.picks.agent, flat.shape[1] - 1), flat)


class _Flipped(AbstractSamplingPlan):
    """Hard draws, but for one."""

    found: tuple[Site, ...] = eqx.field(static=True)
    pick: _Picks

    hard = True

    def of(self, draw):
        here = (self.pick.site == _index(self.found, draw)) & (self.pick.time == draw.time)
        return _FlippedDraw(here, self.pick.agent, self.pick.other)


class _FlippedDraw(AbstractSamplingRule):
    here: Array
    agent: Array
    other: Array

    hard = True

    def _this(self, shape: tuple[int, ...]):
        return self.here & (jnp.arange(math.prod(shape)).reshape(shape) == self.agent)

    def bernoulli(self, p, where, u):
        sample = Hard().bernoulli(p, where, u)
        return jnp.where(self._this(sample.shape), self.other.astype(sample.dtype), sample)

    def categorical(self, p, u, exponentials):
        sample = Hard().categorical(p, u, exponentials)
        instead = jax.nn.one_hot(self.other, p.shape[0], dtype=sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
        return jnp.where(self._this(sample.shape[1:]), instead, sample)
