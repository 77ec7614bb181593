"""The exact derivative of the expected loss, by running every outcome of every discrete draw.

    d E[L] / d theta = d/dtheta sum_b p(b; theta) L(b, theta)

For models so small that it can be done: the truth that other estimators are tested against.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan, AbstractSamplingRule, Draw, bernoulli_log_prob
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._sites import Site, sites
from calibrant.estimators.score_function import loss_of_each


class Enumeration(AbstractEstimator):
    """Exact over discrete draws; continuous noise is that of the seed, and is averaged over replicates.

    Its losses are expectations, not those of one simulation.

    **Arguments:** `max_outcomes`, above which it refuses: a simulation is run for each.
    """

    max_outcomes: int = eqx.field(default=2**16, static=True)

    unbiased = True
    separable = True

    def runs(self, problem, dim):
        return _Places(outer(sites(problem)), problem.steps).outcomes

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        check_per_simulation(problem, self)
        places = _Places(outer(sites(problem)), problem.steps)
        if not places.log2_outcomes <= math.log2(self.max_outcomes):
            raise ValueError(
                f"Enumeration would run 2^{places.log2_outcomes:.0f} outcomes of {type(problem.model).__name__}, and "
                f"at most {self.max_outcomes:,} are allowed; take fewer agents or steps, or another estimator."
            )

    def losses(self, problem, run, values, seeds):
        batch, replicates = seeds.shape[:2]
        places = _Places(outer(sites(problem)), problem.steps)
        outcomes = jnp.tile(jnp.arange(places.outcomes, dtype=jnp.int32), replicates)
        rule = _Scripted(places, jnp.broadcast_to(outcomes, (batch, outcomes.shape[0])))
        repeated = jnp.repeat(seeds, places.outcomes, axis=1)
        trajectories = run(values, repeated, rule, _OutcomeProbability(), each=True)
        assert trajectories.notes is not None
        probability = jnp.exp(jnp.sum(trajectories.notes, axis=2))
        each = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(trajectories.outputs, values)
        possible = probability > 0
        return jnp.sum(
            jnp.where(possible, probability * jnp.where(possible, each, 0), 0), axis=1
        ) / replicates, trajectories


def outer(found: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites, if none stands in an inner loop.

    **Raises:** `ValueError`.
    """
    for site in found:
        if site.inner:
            raise ValueError(
                f"The draw at site '{site.name}' stands in an inner loop, where single draws have no number of their "
                "own; use ScoreFunction()."
            )
    return found


class _Places(eqx.Module):
    """Which digit of the number of an outcome belongs to which draw."""

    sites: tuple[Site, ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def _count(self, site: Site) -> int:
        return (site.categories or 2) ** math.prod(site.shape)

    def _of(self, init: bool) -> list[Site]:
        return [site for site in self.sites if (site.phase == "init") == init]

    @property
    def log2_outcomes(self) -> float:
        """Of how many outcomes there are."""

        def bits(init: bool) -> float:
            return sum((math.log2(s.categories or 2) * math.prod(s.shape) for s in self._of(init)), 0.0)

        return bits(True) + self.steps * bits(False)

    @property
    def outcomes(self) -> int:
        """How many there are."""
        return round(2**self.log2_outcomes)

    def digits(self, outcome: Int[Array, ""], draw: Draw) -> Int[Array, "*n"]:
        """What comes out of each agent's draw."""
        site = next(site for site in self.sites if site.draws(draw))
        group = self._of(site.phase == "init")
        below = math.prod(self._count(s) for s in group[: group.index(site)])
        radix = site.categories or 2
        agent = np.array([radix**i for i in range(math.prod(site.shape))], np.int32).reshape(site.shape)
        first = math.prod(self._count(s) for s in self._of(True))
        step = math.prod(self._count(s) for s in self._of(False))
        place = 1 if draw.phase == "init" else jnp.array([first * step**t for t in range(self.steps)])[draw.time - 1]
        return (outcome // (place * below * agent)) % radix


class _Scripted(AbstractSamplingPlan):
    places: _Places
    outcome: Int[Array, "..."]

    hard = True

    def of(self, draw):
        return _ScriptedDraw(self.places.digits(self.outcome, draw))


class _ScriptedDraw(AbstractSamplingRule):
    digits: Int[Array, "*n"]

    hard = True

    def bernoulli(self, p, where, u):
        certain = where * (p >= 1)
        sample = jnp.where(_decided(p, where), self.digits.astype(p.dtype) * where, certain)
        return jax.lax.stop_gradient(sample)

    def categorical(self, p, u, exponentials):
        return jax.nn.one_hot(self.digits, p.shape[0], dtype=p.dtype, axis=0)


def _decided(p: Array, where: Array) -> Array:
    return (where > 0) & (p > 0) & (p < 1)


class _OutcomeProbability(AbstractRecorder):
    """Log-probability of a scripted outcome. A draw that decides nothing has as many scripts as digits, each of equal
    weight; an impossible category has none."""

    def zero(self):
        return jnp.zeros(())

    def bernoulli(self, draw, sample, p, where):
        undecided = jnp.sum(~_decided(p, where))
        return jnp.sum(bernoulli_log_prob(sample, p, where)) - jnp.log(2.0).astype(p.dtype) * undecided

    def categorical(self, draw, sample, p):
        chosen = jnp.sum(sample * p, axis=0)
        possible = chosen > 0
        log = jnp.where(possible, jnp.log(jnp.where(possible, chosen, 1)), -jnp.inf)
        return jnp.sum(log - jnp.log(jnp.sum(p, axis=0)))
