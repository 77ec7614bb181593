"""Markov chains on the generalised posterior with common random numbers: what NUTS and MALA share.

The target is the density of `_losses.Target`: the loss is taken at a fixed set of `replicates` simulation seeds, so it
is a deterministic function of the parameters, and chains can be exact for it. It is the generalised posterior as far as
so many simulations tell the expected loss; more draws do not bring it nearer, more `replicates` do.

**Surrogate gradients.** With discrete draws the loss at fixed seeds is a step function, and its straight-through
gradient is not its derivative. The chains are exact for the density all the same, because the gradient only proposes
and the *values* of the density decide:

- A leapfrog step with any deterministic force `F(z)` in place of the gradient is a sequence of shears, so it preserves
  volume, and it is undone by reversing the momentum. That is all that the acceptance of Hamiltonian Monte Carlo asks
  for (Neal 2011, arXiv 1206.1901, on approximations to compute the trajectory), and NUTS as well: it picks among the
  states of one orbit of that map by their values, and whether the orbit has turned depends on the states alone
  (Hoffman, Gelman 2014, JMLR 15, section 3.1; Betancourt 2017, arXiv 1701.02434).
- MALA proposes from a normal distribution around `z + step F(z)`, and the Metropolis-Hastings correction has the
  density of that proposal, both ways, whatever `F` is (Roberts, Tweedie 1996, Bernoulli 2(4)).

What is lost is efficiency: energy is no longer nearly conserved, so a poor surrogate means short steps and many
rejections. `F` must not change between updates, so estimators that are trained as they go are refused.

Adaptation is that of Stan, one for each chain, from blackjax's parts: dual averaging of the step size and a diagonal
mass matrix over windows that double. It ends after `warmup` updates, or when half of `max_simulations` is spent.
"""

import abc
import math
import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from calibrant._autodiff import AbstractMode
from calibrant._horizon import AbstractHorizon
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import as_seed
from calibrant.estimators import AbstractEstimator
from calibrant.inference._base import (
    AbstractMethod,
    Evaluation,
    Result,
    State,
    UpdateRecord,
    require_same_prior,
)
from calibrant.inference._losses import (
    Differentiation,
    Target,
    evaluate_posterior,
    key_of,
    masked_mean,
    settled,
    words_of,
)
from calibrant.inference._repeat import repeated
from calibrant.posteriors import Chains, Posterior

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar

_SHOWN = 0
_TARGET, _START, _MOVES = 0, 1, 2  # streams of random numbers
_CONVERGED = 1.01  # Vehtari et al. 2021, Bayesian Analysis 16(2)


class Walk(eqx.Module):
    """Where the chains are, and how they move."""

    position: Float[Array, "chains dim"]
    log_density: Float[Array, " chains"]
    gradient: Float[Array, "chains dim"]
    step_size: Float[Array, " chains"]
    #: Variances that the steps are scaled by.
    scales: Float[Array, "chains dim"]
    step_adaptation: PyTree[Array]
    scale_adaptation: PyTree[Array]
    warm: Bool[Array, ""]
    divergences: Int[Array, ""]
    #: Mean acceptance of the kept draws.
    acceptance: Float[Array, ""]
    #: In simulations, and how many of them were differentiated.
    spent: Int[Array, ""]
    gradients: Int[Array, ""]
    failed_candidates: Int[Array, ""]


class Move(eqx.Module):
    """A transition of one chain."""

    position: Float[Array, " dim"]
    log_density: Float[Array, ""]
    gradient: Float[Array, " dim"]
    acceptance: Float[Array, ""]
    divergent: Bool[Array, ""]
    #: Evaluations of the density and its gradient.
    evaluations: Int[Array, ""]
    #: The last point that was looked at, and whether the loss was finite there.
    looked_at: Float[Array, " dim"]
    finite: Bool[Array, ""]


class AbstractMCMC(AbstractMethod):
    """Chains on the generalised posterior with common random numbers. An update moves each of them once."""

    weight: AbstractVar[float]
    chains: AbstractVar[int]
    warmup: AbstractVar[int]
    draws: AbstractVar[int]
    replicates: AbstractVar[int]
    candidates: AbstractVar[int]
    target_acceptance: AbstractVar[float]
    estimator: AbstractVar[AbstractEstimator]
    mode: AbstractVar[AbstractMode]
    horizon: AbstractVar[AbstractHorizon]
    simulations_at_once: AbstractVar[int | None]
    max_simulations: AbstractVar[int | None]
    evaluation_simulations: AbstractVar[int]

    @abc.abstractmethod
    def move(self, key: PRNGKeyArray, target: Target, at: Move, step_size: Array, scales: Array) -> Move:
        """One transition of one chain."""

    def __check_init__(self):
        name = type(self).__name__
        for field in (
            "chains", "warmup", "draws", "replicates", "candidates", "evaluate_every", "evaluation_simulations",
        ):  # fmt: skip
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} needs `{field}` to be a whole number >= 1, got {value!r}.")
        if self.max_simulations is not None and self.max_simulations < 1:
            raise ValueError(f"{name} needs `max_simulations` to be at least 1, or None, got {self.max_simulations}.")
        if not self.weight > 0:
            raise ValueError(f"{name} needs a weight > 0, got {self.weight}: at 0 there is no density to draw from.")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"{name} needs a `target_acceptance` between 0 and 1, got {self.target_acceptance}.")
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"`max_failed_fraction` is from 0 to 1, got {self.max_failed_fraction}.")

    @property
    def max_updates(self) -> int:
        """Transitions. The first of them begins with the choice of where to start."""
        return self.warmup + self.draws

    @property
    def _how(self) -> Differentiation:
        return Differentiation(self.estimator, self.mode, self.horizon, self.simulations_at_once)

    def runs_an_update(self, problem, dim):
        """Of a transition with one evaluation of the density; what was really run is in the records."""
        return self.chains * self.replicates * self._how.runs(problem, dim)

    def _runs_at_start(self, problem: Problem, dim: int) -> int:
        return self.chains * self.candidates * self.replicates + self.runs_an_update(problem, dim)

    def check(self, problem, prior):
        self._how.check(problem, prior, 1, self.replicates, type(self).__name__)

    def init(self, problem, prior, seed, start=None):
        self.check(problem, prior)
        words = as_seed(seed)
        room = (self.chains, max(self.draws, self.candidates))
        key = key_of(words, _START)
        if start is None:
            draws = prior.sample(key, room[0] * room[1])
            points = jax.vmap(prior.unconstrain)(draws)
        else:
            require_same_prior(start, prior)
            points, _ = start.sample_coordinates(key, room[0] * room[1])
        points = points.reshape(*room, prior.dim)
        walk = _walk(points, self._first_step(prior.dim), self.target_acceptance)
        zero = jnp.zeros((), jnp.int32)
        return settled(State(Posterior(prior, Chains(points, zero)), walk, None, None, zero, words))

    @abc.abstractmethod
    def _first_step(self, dim: int) -> float:
        """Step size to begin with, in units of the prior."""

    def step(self, problem, state, updates):
        return _updates(self, problem, state, updates, jnp.asarray(updates))

    def evaluate(self, problem, state, stream):
        if stream != _SHOWN:
            return evaluate_posterior(
                self._how, problem, state.posterior, state.seed, stream, self.evaluation_simulations, self.replicates,
                self.weight,
            )  # fmt: skip
        return _shown(self, state)

    def terminate(self, history):
        if not history or history[-1]["update"] == 0:
            return None
        last = history[-1]
        if not math.isfinite(last["loss"]):
            return Result.NON_FINITE
        if last["update"] >= self.max_updates:
            return Result.MAX_UPDATES
        if self.max_simulations is not None and last["spent"] >= self.max_simulations:
            return Result.BUDGET_SPENT
        return None

    def explain(self, result):
        if result is Result.NON_FINITE:
            return (
                f"A chain found no point with a finite loss among its {self.candidates} candidates; narrow the priors, "
                "or allow more `candidates`."
            )
        return None

    def diagnose(self, state):
        walk, flow = state.optimiser, _chains(state.posterior)
        out: dict[str, Any] = {
            "chains": self.chains,
            "draws": int(flow.count),
            "divergences": int(walk.divergences),
            "acceptance": float(walk.acceptance),
            "step_size": np.asarray(walk.step_size).tolist(),
            "failed_candidates": int(walk.failed_candidates),
            "gradients": int(walk.gradients),
        }
        return out | chain_statistics(state.posterior)

    def warn(self, diagnostics):
        found = {}
        r_hat = {k: math.inf if v is None else v for k, v in diagnostics.get("r_hat", {}).items()}
        if r_hat and not diagnostics["converged"]:
            worst = max(r_hat, key=lambda k: r_hat[k])
            found["chains disagree"] = (
                f"R-hat of {worst} is {r_hat[worst]:.3g}, and should be below {_CONVERGED}: these are no draws of one "
                "distribution; take more `warmup` and `draws`, more `replicates`, or another method"
            )
        if diagnostics["divergences"]:
            found["divergent transitions"] = (
                f"{diagnostics['divergences']} after the warm-up: draws may miss a part of the posterior; raise "
                "`target_acceptance`"
            )
        return found


@compiled
def _walk(points: Array, step_size: float, target_acceptance: float) -> Walk:
    """Before the first update."""
    position = points[:, 0]
    zero, steps = jnp.zeros((), jnp.int32), jnp.full(position.shape[0], step_size, points.dtype)
    step_init, _, _ = dual_averaging_adaptation(target_acceptance)
    scale_init, _, _ = mass_matrix_adaptation(True)
    return Walk(
        position=position,
        log_density=jnp.full_like(steps, -jnp.inf),
        gradient=jnp.zeros_like(position),
        step_size=steps,
        scales=jnp.ones_like(position),
        step_adaptation=jax.tree.map(jnp.asarray, jax.vmap(step_init)(steps)),
        scale_adaptation=jax.vmap(lambda _: scale_init(position.shape[1]))(steps),
        warm=jnp.ones((), bool),
        divergences=zero,
        acceptance=jnp.zeros((), points.dtype),
        spent=zero,
        gradients=zero,
        failed_candidates=zero,
    )


def _chains(posterior: Posterior) -> Chains:
    assert isinstance(posterior.flow, Chains)
    return posterior.flow


def chain_statistics(posterior: Posterior) -> dict[str, Any]:
    """Of the chains of a posterior: rank-normalised split R-hat, and effective sample sizes of bulk and tails (Vehtari
    et al. 2021, Bayesian Analysis 16(2)), by scalar parameter. Empty with fewer than two chains or eight draws.
    """
    flow = _chains(posterior)
    values = posterior.chains(10**9)
    if values is None or flow.points.shape[0] < 2 or int(flow.count) < 8:
        return {}
    with warnings.catch_warnings():  # ArviZ announces its refactoring on import
        warnings.simplefilter("ignore")
        import arviz as az
    x = np.concatenate([np.asarray(v).reshape(*v.shape[:2], -1) for v in values.values()], axis=2)
    data = az.convert_to_dataset({"x": x})
    names = posterior.prior.scalar_names()

    def named(statistic: Any) -> dict[str, float | None]:
        return {n: float(v) if np.isfinite(v) else None for n, v in zip(names, statistic["x"].to_numpy(), strict=True)}

    r_hat = named(az.rhat(data))
    return {
        "r_hat": r_hat,
        "ess_bulk": named(az.ess(data, method="bulk")),
        "ess_tail": named(az.ess(data, method="tail")),
        "converged": all(v is not None and v < _CONVERGED for v in r_hat.values()),
    }


@compiled
def _updates(method: AbstractMCMC, problem: Problem, state: State, updates: int, count: Array):
    prior = state.posterior.prior
    words = words_of(state.seed, (1, method.replicates), _TARGET)
    estimator = method.estimator.prepare(problem, key_of(state.seed, _TARGET)).at(jnp.zeros((), jnp.int32))
    how = Differentiation(estimator, method.mode, method.horizon, method.simulations_at_once)
    target = Target(problem, prior, how, method.weight, words)
    schedule = build_schedule(method.warmup)
    kinds, ends = (jnp.asarray([s[i] for s in schedule]) for i in (0, 1))

    def update(state: State) -> tuple[State, UpdateRecord]:
        old, flow = state.optimiser, _chains(state.posterior)
        # Branches take and return what is small, so that the draws are never copied.
        candidates = flow.points[:, : method.candidates]
        walk = jax.lax.cond(state.update == 0, lambda: _begun(method, target, candidates, old), lambda: old)
        spent = jnp.zeros((), bool)
        if method.max_simulations is not None:
            spent = walk.spent >= method.max_simulations
        key = key_of(state.seed, _MOVES + state.update)
        walk, record = jax.lax.cond(
            spent,
            lambda: _stay(walk),
            lambda: _move(method, target, kinds, ends, key, walk, state.update, flow.count),
        )
        keep = ~spent & ~walk.warm
        here = jnp.minimum(flow.count, method.draws - 1)
        points = flow.points.at[:, here].set(jnp.where(keep, walk.position, flow.points[:, here]))
        kept = Chains(points, jnp.minimum(flow.count + keep, method.draws).astype(jnp.int32))
        extra = {"simulations": walk.spent - old.spent, "gradients": walk.gradients - old.gradients}
        record = eqx.tree_at(lambda r: r.extra, record, record.extra | extra)
        return State(Posterior(prior, kept), walk, None, None, state.update + 1, state.seed), record

    return repeated(update, state, updates, count)


def _record(target: Target, walk: Walk, moved: Move, acceptance: Array) -> UpdateRecord:
    nan = jnp.full((), jnp.nan, walk.position.dtype)
    losses = jax.vmap(target.loss)(walk.position, walk.log_density)
    return UpdateRecord(
        loss=masked_mean(losses, jnp.isfinite(losses))[0],
        kl=nan,
        objective=nan,
        gradient_norm=jnp.mean(jnp.linalg.norm(walk.gradient, axis=1)),
        signal_to_noise=nan,
        coordinates=moved.looked_at,
        finite=moved.finite,
        extra={
            "acceptance": jnp.mean(acceptance),
            "divergent": jnp.sum(moved.divergent).astype(jnp.int32),
            "step_size": jnp.mean(walk.step_size),
        },
    )


def _begun(method: AbstractMCMC, target: Target, points: Float[Array, "chains candidates dim"], walk: Walk) -> Walk:
    """Each chain begins at the best of its candidates."""
    prior = target.prior
    flat = points.reshape(-1, prior.dim)
    words = jnp.broadcast_to(target.words, (flat.shape[0], *target.words.shape[1:]))
    losses, finite = target.how.losses(target.problem, prior, flat, words)
    density = jnp.where(finite, jax.vmap(prior.log_base)(flat) - losses / target.weight, -jnp.inf)
    best = jnp.argmax(density.reshape(points.shape[:2]), axis=1)
    position = points[jnp.arange(method.chains), best]
    log_density, gradient = jax.vmap(jax.value_and_grad(target))(position)
    each = method.runs_an_update(target.problem, prior.dim)
    begun = (
        position,
        log_density,
        gradient,
        jnp.sum(~finite).astype(jnp.int32),
        walk.spent + method._runs_at_start(target.problem, prior.dim),
        walk.gradients + each * target.how.differentiates,
    )
    return eqx.tree_at(
        lambda w: (w.position, w.log_density, w.gradient, w.failed_candidates, w.spent, w.gradients), walk, begun
    )


def _stay(walk: Walk) -> tuple[Walk, UpdateRecord]:
    """An update after all simulations are spent: nothing."""
    chains, nan = walk.log_density.shape[0], jnp.full((), jnp.nan, walk.position.dtype)
    extra = {"acceptance": nan, "divergent": jnp.zeros((), jnp.int32), "step_size": nan}
    record = UpdateRecord(nan, nan, nan, nan, nan, walk.position, jnp.ones(chains, bool), extra)
    return walk, record


def _move(
    method: AbstractMCMC,
    target: Target,
    kinds: Array,
    ends: Array,
    key: PRNGKeyArray,
    walk: Walk,
    t: Int[Array, ""],
    drawn: Int[Array, ""],
) -> tuple[Walk, UpdateRecord]:
    """Transition number `t` of every chain, with what it teaches the adaptation; `drawn` were kept before."""
    prior = target.prior
    keys = jax.random.split(key, method.chains)
    _, step_update, step_final = dual_averaging_adaptation(method.target_acceptance)
    _, scale_update, scale_final = mass_matrix_adaptation(True)
    step_init, _, _ = dual_averaging_adaptation(method.target_acceptance)

    warm = walk.warm & (t < method.warmup)
    if method.max_simulations is not None:
        warm &= walk.spent < method.max_simulations // 2
    ended = walk.warm & ~warm
    step_size = jnp.where(ended, jax.vmap(step_final)(walk.step_adaptation), walk.step_size)

    def one(key, z, log_density, gradient, step_size, scales):
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        at = Move(z, log_density, gradient, jnp.zeros_like(log_density), no, zero, z, no)
        return method.move(key, target, at, step_size, scales)

    moved = jax.vmap(one)(keys, walk.position, walk.log_density, walk.gradient, step_size, walk.scales)
    acceptance = jnp.where(jnp.isfinite(moved.acceptance), moved.acceptance, 0)

    # Adaptation, thrown away where it is over.
    step_adaptation = jax.vmap(step_update)(walk.step_adaptation, acceptance)
    at = jnp.minimum(t, method.warmup - 1)
    slow, end = kinds[at] == 1, ends[at]
    updated = jax.vmap(scale_update)(walk.scale_adaptation, moved.position)
    scale_adaptation = _where(slow, updated, walk.scale_adaptation)
    final = jax.vmap(scale_final)(scale_adaptation)
    restarted = jax.vmap(step_init)(jax.vmap(step_final)(step_adaptation))
    scale_adaptation = _where(end, final, scale_adaptation)
    step_adaptation = _where(end, restarted, step_adaptation)
    scales = jnp.where(end, final.inverse_mass_matrix, walk.scales)
    adapted = (jnp.exp(step_adaptation.log_step_size), scales, step_adaptation, scale_adaptation)
    kept = (step_size, walk.scales, walk.step_adaptation, walk.scale_adaptation)
    step_size, scales, step_adaptation, scale_adaptation = _where(warm, adapted, kept)

    evaluations = jnp.sum(moved.evaluations).astype(jnp.int32)
    cost = evaluations * (method.runs_an_update(target.problem, prior.dim) // method.chains)
    keep = (~warm).astype(jnp.int32)
    share = jnp.where(warm, 0, 1 / (drawn + 1).astype(acceptance.dtype))
    mean = walk.acceptance + share * (jnp.mean(acceptance) - walk.acceptance)
    new = Walk(
        position=moved.position,
        log_density=moved.log_density,
        gradient=moved.gradient,
        step_size=step_size,
        scales=scales,
        step_adaptation=step_adaptation,
        scale_adaptation=scale_adaptation,
        warm=warm,
        divergences=walk.divergences + keep * jnp.sum(moved.divergent).astype(jnp.int32),
        acceptance=mean,
        spent=walk.spent + cost,
        gradients=walk.gradients + cost * target.how.differentiates,
        failed_candidates=walk.failed_candidates,
    )
    return new, _record(target, new, moved, acceptance)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b).astype(b.dtype), new, old)


@compiled
def _shown(method: AbstractMCMC, state: State) -> Evaluation:
    """The loss where the chains are, at the seeds of the target: nothing is simulated for it."""
    walk, prior = state.optimiser, state.posterior.prior
    losses = -method.weight * (walk.log_density - jax.vmap(prior.log_base)(walk.position))
    finite = jnp.isfinite(losses)
    loss, error = masked_mean(losses, finite)
    # A chain that is nowhere would stay there.
    loss = jnp.where((state.update == 0) | jnp.all(finite), loss, jnp.nan)
    nan = jnp.full((), jnp.nan, loss.dtype)
    extra = {"spent": walk.spent, "draws": _chains(state.posterior).count, "divergences": walk.divergences}
    failed = jnp.sum(~finite & (state.update > 0))
    return Evaluation(loss, nan, nan, error, failed, extra)
