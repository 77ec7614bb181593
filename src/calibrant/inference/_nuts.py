"""NUTS on the generalised posterior with common random numbers, from blackjax.

Hoffman, Gelman 2014, JMLR 15, with multinomial sampling of the trajectory (Betancourt 2017, arXiv 1701.02434). See
`_mcmc` for the target, and for why a surrogate gradient leaves the chains exact.
"""

import dataclasses
from typing import Any

import blackjax
import equinox as eqx
import jax.numpy as jnp

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant.estimators import AbstractEstimator, Pathwise
from calibrant.inference._base import planned_updates
from calibrant.inference._mcmc import AbstractMCMC, Move

_STEPS = 3  # at least, of a trajectory, where a budget is planned


class NUTS(AbstractMCMC):
    """The no-U-turn sampler on the generalised posterior, with the loss at fixed simulation seeds.

    Exact (as chains are) for the density `prior exp(-loss / weight)` with the loss of the fixed seeds, also with the
    straight-through gradient of discrete draws, which costs efficiency and not correctness.

    **Arguments:**

    - `weight`: `w`, above 0, as in `GVI`.
    - `chains`; `warmup` transitions of each, in which step size and diagonal mass matrix are adapted; `draws` of each
      that are kept.
    - `replicates`: simulations at fixed seeds that the loss is taken of.
    - `candidates`: draws of the prior (or of the start) of which each chain begins at the best.
    - `target_acceptance`: of the adaptation of the step size; `max_doublings` of a trajectory, so it has at most
      `2^max_doublings - 1` steps.
    - `estimator`, `mode`, `horizon`, `simulations_at_once`: of the gradient, as in `GVI`; those that are trained as
      they go (REBAR, RELAX) are refused.
    - `max_simulations`: stop once so many are spent (a transition is not cut short); warm-up takes half at most.
    - `evaluate_every`: updates between two reports; `evaluation_simulations`, of the evaluation at the end.
    - `max_failed_fraction`: of chains that met a loss that is not finite, of late; more is an error.
    """

    weight: float = 1.0
    chains: int = eqx.field(default=4, static=True)
    warmup: int = eqx.field(default=500, static=True)
    draws: int = eqx.field(default=500, static=True)
    replicates: int = eqx.field(default=20, static=True)
    candidates: int = eqx.field(default=10, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    max_doublings: int = eqx.field(default=8, static=True)
    estimator: AbstractEstimator = eqx.field(default_factory=Pathwise)
    mode: AbstractMode = eqx.field(default_factory=ReverseMode)
    horizon: AbstractHorizon = eqx.field(default_factory=FullHorizon)
    simulations_at_once: int | None = eqx.field(default=None, static=True)
    max_simulations: int | None = eqx.field(default=None, static=True)
    evaluate_every: int = eqx.field(default=50, static=True)
    evaluation_simulations: int = eqx.field(default=100, static=True)
    max_failed_fraction: float = eqx.field(default=0.9, static=True)

    def __check_init__(self):
        if not isinstance(self.max_doublings, int) or not 1 <= self.max_doublings <= 20:
            raise ValueError(f"NUTS needs `max_doublings` from 1 to 20, got {self.max_doublings!r}.")

    def with_budget(self, problem, prior, simulations):
        each = self.runs_an_update(problem, prior.dim)
        transitions = (simulations - self._runs_at_start(problem, prior.dim)) // (_STEPS * each)
        if transitions < 40:
            least = self._runs_at_start(problem, prior.dim) + 40 * _STEPS * each
            raise ValueError(f"NUTS with these settings needs {least} simulations or more, got {simulations}.")
        # Warm-up is planned for trajectories of eight steps; it ends at half of the budget in any case.
        transitions, every = planned_updates(transitions, 20)
        warmup = min(1000, max(20, transitions * _STEPS // 16))
        return dataclasses.replace(
            self,
            warmup=warmup,
            draws=transitions - warmup,
            max_simulations=simulations,
            evaluate_every=every,
        )

    def _first_step(self, dim):
        return 1.0

    def move(self, key, target, at, step_size, scales):
        kernel = blackjax.nuts.build_kernel()
        made: Any = blackjax.mcmc.hmc.HMCState
        state = made(at.position, at.log_density, at.gradient)
        state, info = kernel(key, state, target, step_size, scales, self.max_doublings)
        ends = (info.trajectory_leftmost_state, info.trajectory_rightmost_state)
        # A trajectory ends at the first point that is not finite, so that it is one of its ends.
        lost = [~jnp.isfinite(end.logdensity) for end in ends]
        looked_at = jnp.where(lost[0], ends[0].position, jnp.where(lost[1], ends[1].position, state.position))
        return Move(
            position=state.position,
            log_density=state.logdensity,
            gradient=state.logdensity_grad,
            acceptance=info.acceptance_rate,
            divergent=info.is_divergent,
            evaluations=jnp.asarray(info.num_integration_steps, jnp.int32),
            looked_at=looked_at,
            finite=~(lost[0] | lost[1]),
        )
