"""Approximate Bayesian computation by sequential Monte Carlo: for simulators without any gradient.

The target at tolerance eps is the ABC posterior

    p_eps(theta) proportional to prior(theta) P(loss(simulations(theta, seed), y) <= eps)

and particles follow it as eps falls: adaptive tolerances as in Del Moral, Doucet, Jasra 2012 (Statistics and Computing
22(5), section 3.2), with one simulation a particle; particles beyond the new tolerance are replaced by copies of others
at every step, as in Drovandi, Pettitt 2011 (Biometrics 67(1)), so that no simulation is spent on one that counts for
nothing; then all move by one random-walk Metropolis step that leaves p_eps invariant.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calibrant._autodiff import ReverseMode
from calibrant._horizon import FullHorizon
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import as_seed
from calibrant.estimators import Pathwise
from calibrant.inference._base import AbstractMethod, Evaluation, Result, State, UpdateRecord
from calibrant.inference._losses import Differentiation, evaluate_posterior, key_of, settled, words_of
from calibrant.inference._repeat import repeated
from calibrant.posteriors import Particles, Posterior

_SHOWN = 0
_FEWEST = 0.1  # of the particles, that a tolerance leaves where many distances are equal
_DEVIATIONS = 200
_POPULATIONS = 20  # at least, where a budget is planned


class Population(eqx.Module):
    """Particles with their distances. Copies share a number."""

    distance: Float[Array, " particles"]
    number: Int[Array, " particles"]
    tolerance: Float[Array, ""]
    acceptance: Float[Array, ""]
    failed: Int[Array, ""]


class SMCABC(AbstractMethod):
    """Sequential Monte Carlo for approximate Bayesian computation. The distance is the loss of the problem.

    It needs no gradient, and no weight: `tolerance` is what there is instead. The result is the ABC posterior at the
    tolerance reached, not the generalised posterior of `GVI`; with a stochastic simulator it is wider than exact Bayes
    by what the tolerance lets in.

    An update is a population: its first draws the prior. What is not finite is as far as can be: rejected and counted.

    **Arguments:**

    - `particles`; `replicates`: simulations of each, of which the loss is one distance.
    - `alpha`: share of the particles that each new tolerance keeps; the rest become copies of these.
    - `tolerance`: stop once it is reached; `None` goes on.
    - `min_acceptance`: stop once fewer of the moves are accepted.
    - `max_updates`, populations, the first included; `evaluate_every` so many there is a report.
    - `evaluation_simulations`: of the evaluation at the end; `simulations_at_once`, as in `expect`.
    - `max_failed_fraction`: of simulations since the last report; more is an error.
    """

    particles: int = eqx.field(default=1000, static=True)
    replicates: int = eqx.field(default=1, static=True)
    alpha: float = eqx.field(default=0.8, static=True)
    tolerance: float | None = eqx.field(default=None, static=True)
    min_acceptance: float = eqx.field(default=0.015, static=True)
    max_updates: int = eqx.field(default=50, static=True)
    evaluate_every: int = eqx.field(default=1, static=True)
    evaluation_simulations: int = eqx.field(default=100, static=True)
    simulations_at_once: int | None = eqx.field(default=None, static=True)
    max_failed_fraction: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        for name in ("replicates", "max_updates", "evaluate_every", "evaluation_simulations"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SMCABC needs `{name}` to be a whole number >= 1, got {value!r}.")
        if not isinstance(self.particles, int) or self.particles < 20:
            raise ValueError(f"SMCABC needs `particles` to be a whole number >= 20, got {self.particles!r}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"SMCABC needs `alpha` between 0 and 1, got {self.alpha}.")
        if self.tolerance is not None and not math.isfinite(self.tolerance):
            raise ValueError(f"SMCABC needs a finite `tolerance`, or None, got {self.tolerance}.")
        if not 0 <= self.min_acceptance < 1:
            raise ValueError(f"SMCABC needs `min_acceptance` from 0 to below 1, got {self.min_acceptance}.")
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"`max_failed_fraction` is from 0 to 1, got {self.max_failed_fraction}.")

    @property
    def _how(self) -> Differentiation:
        return Differentiation(Pathwise(), ReverseMode(), FullHorizon(), self.simulations_at_once)

    def runs_an_update(self, problem, dim):
        return self.particles * self.replicates

    def check(self, problem, prior):
        self._how.check(problem, prior, self.particles, self.replicates, "SMCABC", derivative=False)

    def with_budget(self, problem, prior, simulations):
        particles = min(self.particles, simulations // self.replicates // _POPULATIONS)
        if particles < 20:
            least = 20 * _POPULATIONS * self.replicates
            raise ValueError(f"SMCABC with these settings needs {least} simulations or more, got {simulations}.")
        updates = simulations // (particles * self.replicates)
        return dataclasses.replace(self, particles=particles, max_updates=updates)

    def init(self, problem, prior, seed, start=None):
        self.check(problem, prior)
        if start is not None:
            raise ValueError("SMCABC begins with draws of the prior, which its weights rest on; leave `start` out.")
        words = as_seed(seed)
        draws = prior.sample(key_of(words, 0), self.particles)
        points = jax.vmap(prior.unconstrain)(draws)
        far = jnp.full(self.particles, jnp.inf, points.dtype)
        nan, zero = jnp.full((), jnp.nan, points.dtype), jnp.zeros((), jnp.int32)
        population = Population(far, jnp.arange(self.particles, dtype=jnp.int32), far[0], nan, zero)
        flow = Particles(points, jnp.zeros_like(far))
        return settled(State(Posterior(prior, flow), population, None, None, zero, words))

    def step(self, problem, state, updates):
        return _updates(self, problem, state, updates, jnp.asarray(updates))

    def evaluate(self, problem, state, stream):
        if stream != _SHOWN:
            return evaluate_posterior(
                self._how, problem, state.posterior, state.seed, stream, self.evaluation_simulations, self.replicates,
                math.nan,
            )  # fmt: skip
        return _shown(state)

    def terminate(self, history):
        if not history or history[-1]["update"] == 0:
            return None
        last = history[-1]
        if not math.isfinite(last["loss"]):
            return Result.NON_FINITE
        if self._close(last["tolerance"]) or last["acceptance"] < self.min_acceptance:
            return Result.CONVERGED
        return Result.MAX_UPDATES if last["update"] >= self.max_updates else None

    def _close(self, tolerance: float) -> bool:
        return self.tolerance is not None and tolerance <= self.tolerance

    def explain(self, result):
        if result is Result.CONVERGED:
            return "The tolerance was reached, or too few moves were accepted to go on."
        if result is Result.NON_FINITE:
            return "No simulation of a draw of the prior was finite."
        return None

    def diagnose(self, state):
        population, alive = state.optimiser, _particles(state).alive
        return {
            "tolerance": float(population.tolerance),
            "acceptance": float(population.acceptance),
            "ess": float(_ess(population, alive)),
            "distinct_particles": len({int(i) for i in population.number[alive]}),
            "gradients": 0,
        }


def _particles(state: State) -> Particles:
    assert isinstance(state.posterior.flow, Particles)
    return state.posterior.flow


def _ess(population: Population, alive: Array) -> Array:
    """Effective number of the distinct particles, weighted by how many copies there are of each. That copies had common
    ancestors before they moved is not in it.
    """
    same = (population.number[:, None] == population.number[None, :]) & alive[:, None] & alive[None, :]
    count = jnp.sum(alive).astype(population.distance.dtype)
    return count**2 / jnp.maximum(jnp.sum(same), 1).astype(count.dtype)


@compiled
def _updates(method: SMCABC, problem: Problem, state: State, updates: int, count: Array):
    return repeated(lambda s: _update(method, problem, s), state, updates, count)


def _update(method: SMCABC, problem: Problem, state: State) -> tuple[State, UpdateRecord]:
    population, flow, prior = state.optimiser, _particles(state), state.posterior.prior
    n = method.particles
    first = state.update == 0
    copy, noise, accept = jax.random.split(key_of(state.seed, 1 + state.update), 3)

    tolerance = jnp.where(first, jnp.inf, _next_tolerance(population, method.alpha, method.tolerance))
    close = (population.distance <= tolerance) & jnp.isfinite(population.distance)
    # Copies of particles that are close enough take the place of the others.
    chosen = jax.random.categorical(copy, jnp.where(jnp.any(close), jnp.where(close, 0.0, -jnp.inf), 0.0), shape=(n,))
    source = jnp.where(close | first, jnp.arange(n), chosen)
    z, distance, number = flow.points[source], population.distance[source], population.number[source]

    proposed = jnp.where(first, z, z + _steps(noise, z))
    words = words_of(state.seed, (n, method.replicates), 1 + state.update)
    losses, finite = method._how.losses(problem, prior, proposed, words)
    new_distance = jnp.where(finite, losses, jnp.inf)
    log_base = jax.vmap(prior.log_base)
    ratio = log_base(proposed) - log_base(z)
    likely = jnp.log(jax.random.uniform(accept, (n,), z.dtype)) < ratio
    moved = first | (likely & finite & (new_distance <= tolerance))
    z = jnp.where(moved[:, None], proposed, z)
    distance = jnp.where(moved, new_distance, distance)
    number = jnp.where(moved, (1 + state.update) * n + jnp.arange(n, dtype=jnp.int32), number)

    alive = jnp.isfinite(distance)
    acceptance = jnp.where(first, jnp.nan, jnp.mean(moved.astype(z.dtype)))
    tolerance = jnp.where(first, jnp.max(jnp.where(alive, distance, -jnp.inf)), tolerance)
    new = Population(distance, number, tolerance, acceptance, jnp.sum(~finite).astype(jnp.int32))
    posterior = Posterior(prior, Particles(z, jnp.where(alive, 0.0, -jnp.inf).astype(z.dtype)))
    nan = jnp.full((), jnp.nan, z.dtype)
    record = UpdateRecord(
        loss=_mean(distance, alive),
        kl=nan,
        objective=nan,
        gradient_norm=nan,
        signal_to_noise=nan,
        coordinates=proposed,
        finite=finite,
        extra={
            "tolerance": tolerance,
            "acceptance": acceptance,
            "ess": _ess(new, alive),
            "simulations": jnp.full((), n * method.replicates, jnp.int32),
            "gradients": jnp.zeros((), jnp.int32),
        },
    )
    return State(posterior, new, None, None, state.update + 1, state.seed), record


def _next_tolerance(population: Population, alpha: float, least: float | None) -> Array:
    """The distance that leaves a share `alpha` of the particles that count; a smaller one where it would stand still,
    distances being equal.
    """
    distance = population.distance
    alive = jnp.isfinite(distance)
    count = jnp.sum(alive)
    index = jnp.ceil(alpha * count.astype(distance.dtype)).astype(jnp.int32) - 1
    tolerance = jnp.sort(distance)[jnp.maximum(index, 0)]
    below = jnp.max(jnp.where(distance < population.tolerance, distance, -jnp.inf))
    enough = jnp.sum(distance <= below) >= _FEWEST * count
    tolerance = jnp.where(enough, jnp.minimum(tolerance, below), tolerance)
    return tolerance if least is None else jnp.maximum(tolerance, least)


def _steps(key: Array, z: Float[Array, "particles dim"]) -> Float[Array, "particles dim"]:
    """Normal steps with the covariance of the particles times 2.38^2 / dim (Gelman, Roberts, Gilks 1996): sums of
    deviations from their mean with independent normal factors have just that covariance, and need no decomposition of
    it. Of many particles, those of some, drawn for each population, say enough.
    """
    n, dim = z.shape
    some = min(n, _DEVIATIONS)
    choice, factors = jax.random.split(key)
    deviations = (z - jnp.mean(z, axis=0))[jax.random.randint(choice, (some,), 0, n)]
    return 2.38 / math.sqrt(dim * some) * jax.random.normal(factors, (n, some), z.dtype) @ deviations


def _mean(x: Array, alive: Array) -> Array:
    count = jnp.sum(alive).astype(x.dtype)
    return jnp.where(count > 0, jnp.sum(jnp.where(alive, x, 0)) / jnp.maximum(count, 1), jnp.nan)


@compiled
def _shown(state: State) -> Evaluation:
    """The distance of the particles: nothing is simulated for it."""
    population, alive = state.optimiser, _particles(state).alive
    nan = jnp.full((), jnp.nan, population.distance.dtype)
    seen = alive & jnp.isfinite(population.distance)
    loss, ess = _mean(population.distance, seen), _ess(population, seen)
    spread = _mean((population.distance - loss) ** 2, seen)
    extra = {"tolerance": population.tolerance, "acceptance": population.acceptance, "ess": ess}
    return Evaluation(loss, nan, nan, jnp.sqrt(spread / jnp.maximum(ess, 1)), population.failed, extra)
