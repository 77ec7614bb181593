"""The Metropolis-adjusted Langevin algorithm on the generalised posterior with common random numbers.

Roberts, Tweedie 1996, Bernoulli 2(4), from the parts of blackjax's kernel, in coordinates scaled by the standard
deviations that the warm-up finds. See `_mcmc` for the target, and for why a surrogate gradient leaves the chains exact.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc.diffusions import overdamped_langevin
from blackjax.mcmc.mala import MALAState
from blackjax.mcmc.proposal import static_binomial_sampling

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant.estimators import AbstractEstimator, Pathwise
from calibrant.inference._base import planned_updates
from calibrant.inference._mcmc import AbstractMCMC, Move


class MALA(AbstractMCMC):
    """The Metropolis-adjusted Langevin algorithm on the generalised posterior, with the loss at fixed simulation seeds.

    Exact (as chains are) for the density `prior exp(-loss / weight)` with the loss of the fixed seeds, also with the
    straight-through gradient of discrete draws. A transition costs one gradient of each chain, always.

    **Arguments:** as of `NUTS`; `target_acceptance` is that of Roberts and Rosenthal (1998, JRSS B 60(1)) by default.
    """

    weight: float = 1.0
    chains: int = eqx.field(default=4, static=True)
    warmup: int = eqx.field(default=1000, static=True)
    draws: int = eqx.field(default=2000, static=True)
    replicates: int = eqx.field(default=20, static=True)
    candidates: int = eqx.field(default=10, static=True)
    target_acceptance: float = eqx.field(default=0.574, static=True)
    estimator: AbstractEstimator = eqx.field(default_factory=Pathwise)
    mode: AbstractMode = eqx.field(default_factory=ReverseMode)
    horizon: AbstractHorizon = eqx.field(default_factory=FullHorizon)
    simulations_at_once: int | None = eqx.field(default=None, static=True)
    max_simulations: int | None = eqx.field(default=None, static=True)
    evaluate_every: int = eqx.field(default=100, static=True)
    evaluation_simulations: int = eqx.field(default=100, static=True)
    max_failed_fraction: float = eqx.field(default=0.9, static=True)

    def with_budget(self, problem, prior, simulations):
        each = self.runs_an_update(problem, prior.dim)
        transitions = (simulations - self._runs_at_start(problem, prior.dim)) // each
        if transitions < 40:
            least = self._runs_at_start(problem, prior.dim) + 40 * each
            raise ValueError(f"MALA with these settings needs {least} simulations or more, got {simulations}.")
        transitions, every = planned_updates(transitions, 20)
        warmup = min(1000, transitions // 2)
        return dataclasses.replace(
            self,
            warmup=warmup,
            draws=transitions - warmup,
            max_simulations=simulations,
            evaluate_every=every,
        )

    def _first_step(self, dim):
        return 0.5 * dim ** (-1 / 3)

    def move(self, key, target, at, step_size, scales):
        # In u = z / s, where s are standard deviations: d log pi / du = s d log pi / dz.
        s = jnp.sqrt(scales)
        propose: Any = overdamped_langevin(jax.value_and_grad(lambda u: target(s * u)))
        noise, accept = jax.random.split(key)
        state: Any = MALAState(at.position / s, at.log_density, s * at.gradient)  # pyright: ignore[reportArgumentType]
        new: Any = MALAState(*propose(noise, state, step_size))

        def energy(a, b):
            """Minus the logarithm of the density at `b` times that of proposing `a` from there."""
            return -b.logdensity + 0.25 / step_size * jnp.sum(
                (a.position - b.position - step_size * b.logdensity_grad) ** 2
            )

        log_ratio = energy(new, state) - energy(state, new)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        choose: Any = static_binomial_sampling
        kept, (accepted, probability, _) = choose(accept, log_ratio, state, new)
        finite = jnp.isfinite(new.logdensity)
        return Move(
            position=jnp.where(accepted, s * new.position, at.position),
            log_density=kept.logdensity,
            gradient=jnp.where(accepted, new.logdensity_grad / s, at.gradient),
            acceptance=jnp.asarray(probability, at.log_density.dtype),
            divergent=~finite,
            evaluations=jnp.ones((), jnp.int32),
            looked_at=s * new.position,
            finite=finite,
        )
