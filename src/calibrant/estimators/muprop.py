"""MuProp: the score function with a linear control variate from the straight-through adjoint.

Gu, Levine, Sutskever, Mnih 2016, arXiv 1511.05176. With `r = b - p` what a draw adds to its expectation, and `lambda`
any sensitivity of the loss to it that does not depend on the draw,

    d E[L] / d theta = E[ (L - sum lambda r) d log p(b) / d theta ] + E[ sum lambda dp / d theta ]

since `E[r d log p] = dp` at each draw, and the `r` of later and earlier draws have mean zero given all before. The more
of the loss's fluctuation is linear in the draws, the less noise is left; what is linear alone leaves none at all.

MuProp takes `lambda` from a simulation of means. An agent-based model has no such thing, so here it is the adjoint of
straight-through, which also depends on the draws, of *other* replicates: replicates are split in two halves, and each
half's draws are multiplied with sensitivities from the other. What carries over from one replicate to another is the
sensitivity as a function of time, of the place of the draw, and of the probability `p` of the draw, which often says in
what situation an agent is; so it is fitted as a polynomial in `sqrt(p)`, by least squares weighted with the variance of
the draw. Each place's part is rescaled by a regression of the loss on it in the other half, which leaves out of the
estimate a sensitivity that is of no use. Before that it is made small enough that no place's part varies more than
twice as widely as the losses, which none that is right does; along the paths of a chaotic model adjoints grow without
bound. No step of this makes the estimate biased.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calibrant._loop import Loop
from calibrant._problem import Problem
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan, AbstractSamplingRule, Draw, Hard, StraightThrough
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._residuals import Columns, Residuals
from calibrant.estimators._sites import sites
from calibrant.estimators._solve import solve_positive
from calibrant.estimators.score_function import loss_of_each, score_times

#: The standard deviation that a part may have, in those of the losses, which a few replicates know roughly.
_SPREAD = 2.0


class MuProp(AbstractEstimator):
    """Unbiased for Bernoulli and categorical draws, with less noise than `ScoreFunction` the more linear a model is.

    It differentiates every simulation twice: the score, in the mode that was asked for, and the straight-through
    adjoint of all draws, always by reverse mode along all paths.

    **Arguments:** `degree`, of the polynomial in `sqrt(p)`.
    """

    degree: int = eqx.field(default=2, static=True)

    unbiased = True
    separable = True

    def __check_init__(self):
        if self.degree < 0:
            raise ValueError(f"MuProp needs a degree of at least 0, got {self.degree}.")

    def runs(self, problem, dim):
        return 2

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        if replicates < 4:
            raise ValueError(
                f"MuProp learns from half of the replicates what to do with the other, and needs at least 4 of each "
                f"parameter value, got {replicates}; set `replicates`."
            )
        check_per_simulation(problem, self)

    def losses(self, problem, run, values, seeds):
        replicates = seeds.shape[1]
        columns = Columns(sites(problem), self.degree)
        trajectories = run(values, seeds, Hard(), Residuals(columns))
        losses = jax.vmap(problem.evaluate)(trajectories.outputs, values)
        each = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(trajectories.outputs, values)
        fixed = jax.tree.map(lambda x: jnp.repeat(jax.lax.stop_gradient(x)[:, None], replicates, axis=1), dict(values))
        moments, gram = run.map(lambda v, seed: _adjoint(problem, columns, v, seed), fixed, seeds)
        notes: Any = trajectories.notes
        frozen = jax.lax.stop_gradient((each, notes["residual"], moments, gram))
        advantage, weight = jax.vmap(_in_halves)(*frozen)
        score = score_times(advantage, jnp.sum(notes["log_prob"], axis=(2, 3)))
        expected = score_times(weight, notes["expected"])
        return losses + (jnp.sum(score, axis=1) + jnp.sum(expected, axis=(1, 2, 3, 4))) / replicates, trajectories


class _Probed(AbstractSamplingPlan):
    """Straight-through, plus `probes` times the basis of each column: zero, and the adjoint as gradient."""

    columns: Columns
    probes: Float[Array, "times blocks powers"]

    hard = True

    def of(self, draw):
        return _ProbedDraw(self.columns, self.probes[draw.time], self.columns.block(draw))


class _ProbedDraw(AbstractSamplingRule):
    columns: Columns
    probes: Float[Array, "blocks powers"]
    block: int = eqx.field(static=True)

    hard = True

    def _probe(self, p: Array, weight: Array) -> Array:
        """(rows, *agents)."""
        basis = jnp.stack(self.columns.spread(p), axis=1) * weight[:, None]
        return jnp.einsum("rk,rk...->r...", self.probes[self.block : self.block + p.shape[0]], basis)

    def bernoulli(self, p, where, u):
        sample = StraightThrough().bernoulli(p, where, u)
        return sample + self._probe(p[None], _spread_of(p, where)[None])[0]

    def categorical(self, p, u, exponentials):
        sample = StraightThrough().categorical(p, u, exponentials)
        p = jnp.broadcast_to(p, sample.shape)
        return sample + self._probe(p, _spread_of(p, jnp.ones_like(p)))


def _spread_of(p: Array, where: Array) -> Array:
    """The variance of a draw."""
    p = jnp.clip(jax.lax.stop_gradient(p), 0, 1)
    return p * (1 - p) * jax.lax.stop_gradient(where > 0).astype(p.dtype)


class _Gram(AbstractRecorder):
    """Inner products of the columns of each block, weighted with the variances of the draws."""

    columns: Columns

    def zero(self):
        return jnp.zeros((self.columns.blocks, self.columns.powers, self.columns.powers))

    def _note(self, draw: Draw, p: Array, weight: Array):
        basis = jnp.stack(self.columns.spread(p), axis=1)
        basis = basis.reshape(*basis.shape[:2], -1)
        weighted = basis * weight.reshape(weight.shape[0], 1, -1)
        return self.columns.place(draw, jnp.einsum("rkn,rln->rkl", weighted, basis))

    def bernoulli(self, draw, sample, p, where):
        return self._note(draw, p[None], _spread_of(p, where)[None])

    def categorical(self, draw, sample, p):
        p = jnp.broadcast_to(p, sample.shape)
        return self._note(draw, p, _spread_of(p, jnp.ones_like(p)))


def _adjoint(problem: Problem, columns: Columns, values: Mapping[str, Array], seed: Array):
    """Weighted moments of the straight-through adjoint of the draws of one simulation, and the Gram matrices."""
    params = problem.with_values(values)

    def loss(probes):
        loop = Loop(problem.model, problem.inputs, seed, _Probed(columns, probes), problem.steps, _Gram(columns))
        observed, gram = loop.run(params, jax.lax.scan)
        outputs = problem.model.summarise(params, observed)
        return problem.evaluate(jax.tree.map(lambda x: jnp.asarray(x)[None], outputs), values), gram

    probes = jnp.zeros((problem.steps + 1, columns.blocks, columns.powers), jax.tree.leaves(dict(values))[0].dtype)
    return jax.grad(loss, has_aux=True)(probes)


def _in_halves(losses, residual, moments, gram):
    """For each replicate, by what the half says that it is not in: its loss above the linear part and the mean of such
    losses in its own half, and the weights of the expectations.

    Shapes (replicates,) and (replicates, times, blocks, powers).
    """
    n = losses.shape[0]
    first = jnp.arange(n) < n // 2

    def learned(members):
        def total(x):
            return jnp.sum(jnp.where(members.reshape(-1, *[1] * (x.ndim - 1)), x, 0), axis=0)

        gram_of_half = total(gram)
        sensitivity = _least_squares(gram_of_half, total(moments))
        variance = jnp.einsum("tbk,tbkl,tbl->b", sensitivity, gram_of_half, sensitivity) / jnp.sum(members)
        bound, variance = _bounded(variance, _SPREAD**2 * _variance(losses, members))
        sensitivity = sensitivity * bound[:, None]
        parts = jnp.sum(residual * sensitivity, axis=(1, 3))  # replicates x blocks
        scale = _scales(jnp.where(members[:, None], parts, 0), losses, members, variance)
        return sensitivity * scale[:, None], parts @ scale

    weight, advantage = [], []
    for mine in (first, ~first):
        sensitivity, linear = learned(~mine)
        rest = losses - linear
        count = jnp.sum(mine)
        without = (jnp.sum(jnp.where(mine, rest, 0)) - rest) / jnp.maximum(count - 1, 1)
        advantage.append(rest - without)
        weight.append(sensitivity)
    chosen = first[:, None, None, None]
    return jnp.where(first, *advantage), jnp.where(chosen, *weight)


def _least_squares(
    gram: Float[Array, "times blocks k k"], moments: Float[Array, "times blocks k"]
) -> Float[Array, "times blocks k"]:
    """Solve where there is something to solve: columns without weight get no coefficient, and times with a thousandth
    of the usual weight little: what a few improbable draws say is not for the draws of another replicate."""
    k = gram.shape[-1]
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    used = diagonal > jnp.finfo(gram.dtype).tiny
    scale = jnp.where(used, 1 / jnp.sqrt(jnp.where(used, diagonal, 1)), 0)
    typical = jnp.mean(diagonal, axis=0) * scale**2
    ridge = 1e-3 * (1 + typical) + jnp.where(used, 0, 1)
    correlation = gram * scale[..., None] * scale[..., None, :] + (ridge[..., None] * jnp.eye(k)).astype(gram.dtype)
    solve = jnp.vectorize(lambda a, b: solve_positive(a, b[:, None])[:, 0], signature="(k,k),(k)->(k)")
    solved = scale * solve(correlation, scale * moments)
    return jnp.where(jnp.isfinite(solved), solved, 0)


def _variance(losses: Float[Array, " n"], members) -> Float[Array, ""]:
    count = jnp.sum(members)
    centred = jnp.where(members, losses - jnp.sum(jnp.where(members, losses, 0)) / count, 0)
    return jnp.sum(centred**2) / (count - 1)


def _bounded(variance: Float[Array, " blocks"], most: Float[Array, ""]):
    """Factors with which no block's part has a variance above `most`, and the variances then."""
    sound = jnp.isfinite(variance)
    bound = jnp.sqrt(jnp.minimum(1, most / jnp.where(sound & (variance > 0), variance, 1)))
    return jnp.where(sound, jnp.where(variance > 0, bound, 1), 0), jnp.where(sound, jnp.minimum(variance, most), 0)


def _scales(parts: Float[Array, "n blocks"], losses: Float[Array, " n"], members, variance) -> Float[Array, " blocks"]:
    """Regression of the losses on the parts over the members, towards 1 with the weight of one more replicate.

    `variance` is that which the parts must have, from the probabilities of the draws.
    """
    count = jnp.sum(members)
    y = losses - jnp.sum(jnp.where(members, losses, 0)) / count
    y = jnp.where(members, y - jnp.sum(parts, axis=1) + jnp.sum(parts) / count, 0)
    x = jnp.where(members[:, None], parts - jnp.sum(parts, axis=0) / count, 0)
    gram = x.T @ x + jnp.diag(jnp.where(variance > 0, variance, 1))
    return 1 + solve_positive(gram, (x.T @ y)[:, None])[:, 0]
