"""Generalised variational inference.

Knoblauch, Jewson, Damoulas 2022, JMLR 23(132); for agent-based models Quera-Bofarull et al. 2023, arXiv 2305.15340 and
2307.01085. It minimises

    E_{theta ~ q_phi} E_seed [ loss(simulations(theta, seed), y) ]  +  w KL(q_phi || prior)

over the parameters phi of a normalizing flow. With `theta = T_phi(noise)` an update estimates

    d/dphi = (1/S) sum_s (dtheta_s/dphi)' g_s  +  w dKL/dphi,        g_s an estimate of d E[loss] / dtheta at theta_s

so the simulator only has to give the `g_s` (by any estimator, horizon and AD mode), and the flow is differentiated by
reverse mode outside. A simulation that is not finite is masked in both sums and counted. The KL keeps its full
gradient, entropy included.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._model import no_derivative
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import as_seed, seeds
from calibrant.estimators import AbstractEstimator, FiniteDifferences, Pathwise
from calibrant.estimators.rebar import AbstractRelaxed
from calibrant.inference._base import (
    AbstractMethod,
    Evaluation,
    Result,
    State,
    UpdateRecord,
    best_evaluation,
    planned_updates,
    require_same_prior,
)
from calibrant.inference._black_box import FlowScore
from calibrant.inference._corrected import Corrected
from calibrant.inference._failures import AbstractFailures, LeaveOut
from calibrant.inference._losses import EVALUATION_STREAMS, Differentiation, check_outside, key_of, settled, words_of
from calibrant.inference._planner import AutoMode, Compiled, fitting, plan, planned_mode
from calibrant.inference._repeat import repeated
from calibrant.inference._signal import RunningSignal, signal_to_noise
from calibrant.posteriors import (
    AbstractPosterior,
    FullRankGaussian,
    MaskedAutoregressiveFlow,
    Posterior,
    kl_from_prior,
    trainable,
)
from calibrant.posteriors._interned import interned

_FLOW_NOISE, _FIT_TO_PRIOR, _ESTIMATOR, _FAILURES = 0, 1, 2, 3


def default_optimiser(learning_rate: Any = 1e-3, weight_decay: float = 1e-4, clip: float = 1.0):
    """AdamW after clipping the gradient to a global norm of `clip`.

    Weight decay pulls the flow towards its start, the prior; at 1e-4 (times the learning rate, an update) its effect
    on the posterior is negligible.
    """
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(learning_rate, weight_decay=weight_decay))


class GVI(AbstractMethod):
    """Generalised variational inference.

    **Arguments:**

    - `weight`: `w`, of the KL divergence from the prior. With a negative log-likelihood 1 is Bayes where the
      simulation has no noise, and approaches it with `losses.MarginalLikelihood`.
    - `simulations`: parameter values an update; `replicates`: simulations of each.
    - `max_updates`; `learning_rate`, 1e-3 by default, of AdamW (weight decay 1e-4) after clipping at norm 1; it falls
      along half a cosine to `final_learning_rate` at `max_updates`, if that is given; or `optimiser`, an optax
      transformation in its place.
    - `estimator`: of the gradient in the parameters (`Pathwise()`, `Corrected()`, ...); or, from losses alone,
      `FiniteDifferences()` or `FlowScore()`.
    - `mode`, `horizon`, `simulations_at_once`: as in `expect`; `AutoMode()` chooses mode and `simulations_at_once`.
    - `evaluation_at_once`: the same of an evaluation, which takes no derivative; as `simulations_at_once` by default.
    - `kl_samples`: draws of the flow for the KL; the first `simulations` of them are also simulated.
    - `evaluate_every`, `evaluation_simulations`: every so many updates the objective is evaluated on a fixed set of
      draws; the flow that does best on it is kept.
    - `patience`: stop after so many evaluations without improvement; `None` never.
    - `failures`: what simulations that are not finite count as: `LeaveOut()`, `Penalise(loss)`, `LearnProbability()`.
    - `max_failed_fraction`: of simulations in the last `evaluate_every` updates; more is an error. By default one half
      where they are left out, and 1 otherwise.
    - `family`: of the posterior.
    """

    weight: float = 1.0
    simulations: int = eqx.field(default=5, static=True)
    replicates: int = eqx.field(default=1, static=True)
    max_updates: int = eqx.field(default=5000, static=True)
    learning_rate: float | None = None
    final_learning_rate: float | None = None
    optimiser: optax.GradientTransformation | None = eqx.field(default=None, static=True)
    estimator: "AbstractEstimator | Corrected | FlowScore" = eqx.field(default_factory=Pathwise)
    mode: AbstractMode | AutoMode = eqx.field(default_factory=ReverseMode)
    horizon: AbstractHorizon = eqx.field(default_factory=FullHorizon)
    simulations_at_once: int | None = eqx.field(default=None, static=True)
    evaluation_at_once: int | None = eqx.field(default=None, static=True)
    kl_samples: int = eqx.field(default=1000, static=True)
    evaluate_every: int = eqx.field(default=100, static=True)
    evaluation_simulations: int = eqx.field(default=100, static=True)
    patience: int | None = eqx.field(default=None, static=True)
    max_failed_fraction: float | None = eqx.field(default=None, static=True)
    family: AbstractPosterior = eqx.field(default_factory=MaskedAutoregressiveFlow)
    failures: AbstractFailures = eqx.field(default_factory=LeaveOut)

    def __check_init__(self):
        for name in ("simulations", "replicates", "max_updates", "evaluate_every", "evaluation_simulations"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"GVI needs `{name}` to be a whole number >= 1, got {value!r}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"GVI needs a `patience` of at least 1, or None, got {self.patience}.")
        if self.optimiser is not None and not self.learning_rate is self.final_learning_rate is None:
            raise ValueError("GVI takes a `learning_rate` or an `optimiser`, not both.")
        if isinstance(self.mode, AutoMode) and not self.simulations_at_once is self.evaluation_at_once is None:
            raise ValueError("AutoMode chooses how many simulations run at once; leave it out, or give a mode.")
        if self.kl_samples < self.simulations:
            raise ValueError(
                f"GVI simulates the first draws of its KL estimate, so `kl_samples` ({self.kl_samples}) must be at "
                f"least `simulations` ({self.simulations})."
            )
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"GVI needs a weight >= 0, got {self.weight}.")
        if self.max_failed_fraction is not None and not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"`max_failed_fraction` is from 0 to 1, got {self.max_failed_fraction}.")

    def _optimiser(self) -> optax.GradientTransformation:
        rate = 1e-3 if self.learning_rate is None else self.learning_rate
        if self.final_learning_rate is not None:
            rate = optax.cosine_decay_schedule(rate, self.max_updates, self.final_learning_rate / rate)
        return default_optimiser(rate) if self.optimiser is None else self.optimiser

    @property
    def allowed_failures(self):
        return self.failures.max_fraction if self.max_failed_fraction is None else self.max_failed_fraction

    def runs_an_update(self, problem, dim):
        estimator, extra = self.estimator, 0
        if isinstance(estimator, Corrected):
            estimator, extra = estimator.estimator, 2 * estimator.differences
        each = estimator.runs(problem, dim) if isinstance(estimator, AbstractEstimator) else 1
        return (self.simulations * each + extra) * self.replicates

    def check(self, problem, prior):
        prior.check(problem)
        unknown = [name for name in self.horizon.keep if name not in problem.parameter_names]
        if unknown:
            raise ValueError(
                f"The horizon keeps '{unknown[0]}', which is no parameter of the model; "
                f"it has {', '.join(problem.parameter_names)}."
            )
        if isinstance(self.family, FullRankGaussian) and self.family.scale != 1 and not prior.is_standard:
            without = [n for n, c in zip(prior.names, prior.coordinates, strict=True) if not c.is_standard]
            raise ValueError(
                "A start at another scale than the prior's needs priors with a quantile function; "
                f"that of {without[0]} has none."
            )
        if isinstance(self.estimator, FlowScore) and self.simulations < 2:
            raise ValueError("FlowScore needs at least 2 simulations an update for its baseline; set `simulations`.")
        if isinstance(self.estimator, FiniteDifferences) and self.estimator.scale is not None:
            raise ValueError("In GVI the step of FiniteDifferences is in coordinates of the prior; leave `scale` out.")
        if not isinstance(self.estimator, (FiniteDifferences, FlowScore)) and not problem.model.differentiable:
            raise ValueError(no_derivative(problem.model))
        check_outside(problem, self.mode, self.horizon, self.estimator)
        if isinstance(self.estimator, Corrected):
            self.estimator.check(problem, prior.dim, self.simulations, self.replicates)
            return
        if not isinstance(self.estimator, (FiniteDifferences, FlowScore)):
            self.estimator.prepare(problem, jax.random.key(0)).check(problem, self.simulations, self.replicates)
            return
        for name, plain in (("horizon", FullHorizon()), ("mode", ReverseMode())):
            if isinstance(getattr(self, name), AutoMode):
                continue  # it chooses how many simulations run at once
            if not eqx.tree_equal(getattr(self, name), plain):
                raise ValueError(
                    f"{type(self.estimator).__name__} takes no derivative of the simulator, so the `{name}` would have "
                    "no effect; leave it out, or choose another `estimator`."
                )
        Pathwise().check(problem, self.simulations, self.replicates)

    def planned(self, problem, prior):
        if not isinstance(self.mode, AutoMode):
            return self, None
        estimator, points = self.estimator, 1
        if isinstance(estimator, (AbstractEstimator, Corrected)):
            estimator = estimator.prepare(problem, jax.random.key(0))
        base = estimator.estimator if isinstance(estimator, Corrected) else estimator
        if isinstance(estimator, FiniteDifferences):
            points = estimator.points(prior.dim)
        budget = self.mode.budget

        def update(mode: AbstractMode, at_once: int | None):
            method = dataclasses.replace(self, mode=mode, simulations_at_once=at_once)
            z = jax.random.normal(jax.random.key(0), (self.simulations, prior.dim))
            words = seeds(0, (self.simulations, self.replicates))
            return Compiled(_gradients_for_plan, (estimator, method, problem, prior, z, words))

        found = plan(
            update,
            dim=prior.dim,
            steps=problem.steps,
            simulations=self.simulations * self.replicates * points,
            row=self.replicates,
            budget=budget,
            derivative=not isinstance(estimator, (FiniteDifferences, FlowScore)),
            separable=getattr(base, "separable", True),
        )
        chosen: Any = {"mode": found.chosen.mode, "simulations_at_once": found.chosen.simulations_at_once}
        settled = dataclasses.replace(self, **chosen)
        words = seeds(0, (self.evaluation_simulations, self.replicates))

        def evaluation(at_once: int | None):
            method = dataclasses.replace(settled, evaluation_at_once=at_once)
            z = jax.random.normal(jax.random.key(0), (self.evaluation_simulations, prior.dim))
            return Compiled(_losses_of_evaluation, (method, problem, prior, z, words))

        at_once, _ = fitting(evaluation, words.shape[0] * words.shape[1], self.replicates, budget)
        at_once = at_once if at_once is None else max(at_once, 1)  # no more than a gradient of one, which fits
        settled = dataclasses.replace(settled, evaluation_at_once=at_once)
        return settled, dataclasses.replace(found, evaluation_at_once=at_once)

    def settled(self, plan):
        if plan is None:
            return self
        names = ("simulations_at_once", "evaluation_at_once")
        chosen: Any = {"mode": planned_mode(plan), **{name: plan[name] for name in names}}
        return dataclasses.replace(self, **chosen)

    @property
    def runs_an_evaluation(self):
        return self.evaluation_simulations * self.replicates

    def with_budget(self, problem, prior, simulations):
        each = self.runs_an_update(problem, prior.dim)
        # An evaluation at the start and ten or so on the way, no more than a fifth of the budget.
        evaluations = simulations // 100 // self.replicates
        updates = (simulations - 20 * min(self.evaluation_simulations, evaluations) * self.replicates) // each
        if evaluations < 2 or updates < 10:
            least = max(200 * self.replicates, 13 * each)
            raise ValueError(f"GVI with these settings needs {least} simulations or more, got {simulations}.")
        fewer, every = planned_updates(updates, 10)
        return dataclasses.replace(
            self,
            max_updates=fewer,
            evaluate_every=every,
            evaluation_simulations=min(self.evaluation_simulations, evaluations),
        )

    def best(self, history):
        return best_evaluation(history)

    def init(self, problem, prior, seed, start=None):
        self.check(problem, prior)
        words = as_seed(seed)
        key = key_of(words, _FLOW_NOISE)
        flow = interned(self.family.build(key, prior.dim))
        if start is not None:
            flow = _same_kind(start, prior, flow)
        elif not prior.is_standard:
            flow = _fit_to_prior(flow, prior, jax.random.fold_in(key, _FIT_TO_PRIOR))
        posterior = Posterior(prior, flow)
        optimiser = self._optimiser().init(trainable(flow)[0])  # pyright: ignore[reportArgumentType]
        estimator, its_optimiser = self.estimator, None
        if isinstance(estimator, AbstractEstimator):
            estimator = estimator.prepare(problem, jax.random.fold_in(key, _ESTIMATOR))
        if isinstance(estimator, AbstractRelaxed):
            its_optimiser = estimator.init_training()
        elif isinstance(estimator, Corrected):
            estimator = estimator.prepare(problem, jax.random.fold_in(key, _ESTIMATOR))
            its_optimiser = estimator.init_training(prior.dim)
        failures = self.failures.init(jax.random.fold_in(key, _FAILURES), prior.dim)
        one = self.simulations == 1 and not isinstance(self.estimator, FlowScore)
        signal = RunningSignal.none(prior.dim) if one else None
        state = State(posterior, optimiser, estimator, its_optimiser, jnp.zeros((), jnp.int32), words, failures, signal)
        return settled(state)

    def step(self, problem, state, updates):
        if isinstance(self.mode, AutoMode):
            raise ValueError("AutoMode is settled before the first update: take `planned(problem, prior)[0]`.")
        return _updates(self, problem, state, updates, jnp.asarray(updates))

    def evaluate(self, problem, state, stream):
        return _evaluate(self, problem, state, jnp.asarray(stream, jnp.uint32))

    def terminate(self, history):
        if not history:
            return None
        if not math.isfinite(history[-1]["objective"]):
            return Result.NON_FINITE
        best = best_evaluation(history)
        if self.patience is not None and best is not None and len(history) - 1 - best >= self.patience:
            return Result.CONVERGED
        return Result.MAX_UPDATES if history[-1]["update"] >= self.max_updates else None


@compiled
def _updates(method: GVI, problem: Problem, state: State, updates: int, count: Array) -> tuple[State, UpdateRecord]:
    return repeated(lambda state: _update(method, problem, state), state, updates, count)


def _update(method: GVI, problem: Problem, state: State) -> tuple[State, UpdateRecord]:
    prior = state.posterior.prior
    n, w = method.simulations, method.weight
    stream = state.update + 1
    moving, fixed = trainable(state.posterior.flow)
    flow_key = key_of(state.seed, stream)
    simulation_seeds = words_of(state.seed, (n, method.replicates), stream)

    def draw(moving):
        return Posterior(prior, eqx.combine(moving, fixed)).sample_coordinates(flow_key, method.kl_samples)

    (z, log_q), pull_back = jax.vjp(draw, moving)
    at_z = (problem, prior, z[:n], simulation_seeds)

    # The simulator's part: losses, and their gradients in the coordinates.
    estimator, its_optimiser, failures = state.estimator, state.estimator_optimiser, state.failures
    if isinstance(estimator, FlowScore):
        losses, finite = _how(method).losses(*at_z)
        g = jnp.zeros_like(z[:n])
        accounted = failures.account(z[:n], losses, finite)
        losses, counted = accounted.losses, accounted.weights > 0
        total = jnp.sum(jnp.where(counted, losses, 0))
        others = (total - losses) / jnp.maximum(jnp.sum(counted) - 1, 1)
        scores = accounted.weights * jnp.where(counted, losses - others, 0)
    else:
        if isinstance(estimator, AbstractRelaxed):
            (losses, finite, g), estimator, its_optimiser = estimator.trained(
                its_optimiser, lambda e: _how(method, e).gradients(*at_z)
            )
        elif isinstance(estimator, Corrected):
            (losses, finite, g), its_optimiser = estimator.gradients(its_optimiser, _how(method), *at_z, state.update)
        else:
            losses, finite, g = _how(method, estimator.at(state.update)).gradients(*at_z)
        accounted = failures.account(z[:n], losses, finite)
        g = jnp.where(finite[:, None], g, 0)
        scores = accounted.scores

    # The flow's part: the gradient of w KL, and the simulator's gradients, pulled back together.
    kl, (kl_z, kl_log_q) = jax.value_and_grad(kl_from_prior, argnums=(0, 1))(z, log_q, prior)
    cotangent = (w * kl_z).at[:n].add(accounted.weights[:, None] * g + accounted.slopes / n)
    (gradient,) = pull_back((cotangent, w * kl_log_q))
    if scores is not None:

        def scored(moving):
            flow = eqx.combine(moving, fixed)
            each = jax.vmap(flow.log_prob)(jax.lax.stop_gradient(z[:n]))
            return jnp.sum(jnp.where(scores == 0, 0, scores * each))

        gradient = jax.tree.map(jnp.add, gradient, jax.grad(scored)(moving))

    norm = optax.tree.norm(gradient)
    usable = jnp.isfinite(norm) & jnp.any(finite)
    change, optimiser = method._optimiser().update(gradient, state.optimiser, moving)  # pyright: ignore
    moved = eqx.apply_updates(moving, change)

    def chosen(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(usable, a, b) if eqx.is_array(a) else a, new, old)

    signal, ratio = state.signal, jnp.full((), jnp.nan, z.dtype)
    if signal is not None:
        signal = signal.told(g, finite)
        ratio = signal.ratio
    elif not isinstance(estimator, FlowScore):
        ratio = signal_to_noise(g, finite)
    loss = accounted.loss
    record = UpdateRecord(
        loss=loss,
        kl=kl,
        objective=loss + w * kl,
        gradient_norm=norm,
        signal_to_noise=ratio,
        coordinates=z[:n],
        finite=finite,
    )
    flow = eqx.combine(chosen(moved, moving), fixed)
    optimiser = chosen(optimiser, state.optimiser)
    failures = failures.told(jax.random.fold_in(flow_key, _FAILURES), jax.lax.stop_gradient(z[:n]), finite)
    posterior = Posterior(prior, flow)
    new = State(posterior, optimiser, estimator, its_optimiser, state.update + 1, state.seed, failures, signal)
    return new, record


def _gradients_for_plan(estimator: Any, method: GVI, problem: Problem, prior: Prior, z: Array, simulation_seeds: Array):
    """What of an update depends on the mode."""
    at_z = (problem, prior, z, simulation_seeds)
    if isinstance(estimator, FlowScore):
        return _how(method).losses(*at_z)
    if isinstance(estimator, AbstractRelaxed):
        return estimator.trained(estimator.init_training(), lambda e: _how(method, e).gradients(*at_z))[0]
    first = jnp.zeros((), jnp.int32)
    if isinstance(estimator, Corrected):
        return estimator.gradients(estimator.init_training(prior.dim), _how(method), *at_z, first)[0]
    return _how(method, estimator.at(first)).gradients(*at_z)


def _how(method: GVI, estimator: AbstractEstimator | None = None) -> Differentiation:
    mode = ReverseMode() if isinstance(method.mode, AutoMode) else method.mode
    return Differentiation(estimator or Pathwise(), mode, method.horizon, method.simulations_at_once)


def _losses_of_evaluation(method: GVI, problem: Problem, prior: Prior, z: Array, simulation_seeds: Array):
    at_once = method.simulations_at_once if method.evaluation_at_once is None else method.evaluation_at_once
    method = dataclasses.replace(method, simulations_at_once=at_once)
    return _how(method).losses(problem, prior, z, simulation_seeds)


@compiled
def _evaluate(method: GVI, problem: Problem, state: State, stream: Array | int) -> Evaluation:
    n = method.evaluation_simulations
    stream = jnp.asarray(stream).astype(jnp.uint32) + jnp.uint32(EVALUATION_STREAMS)
    prior = state.posterior.prior
    z, log_q = state.posterior.sample_coordinates(key_of(state.seed, stream), max(n, method.kl_samples))
    simulation_seeds = words_of(state.seed, (n, method.replicates), stream)
    losses, finite = _losses_of_evaluation(method, problem, prior, z[:n], simulation_seeds)
    accounted = state.failures.account(z[:n], losses, finite)
    kl = kl_from_prior(z, log_q, prior)
    return Evaluation(
        loss=accounted.loss,
        kl=kl,
        objective=accounted.loss + method.weight * kl,
        standard_error=accounted.standard_error,
        failed=jnp.sum(~finite),
        left_out=accounted.left_out,
    )


def _same_kind(start: Posterior, prior: Prior, flow):
    """The flow of `start`, if it has the parameters and the form of `flow`."""
    require_same_prior(start, prior)
    shapes = [jax.tree.map(jnp.shape, eqx.filter(x, eqx.is_array)) for x in (start.flow, flow)]
    if jax.tree.structure(start.flow) != jax.tree.structure(flow) or shapes[0] != shapes[1]:
        raise ValueError("The start is a posterior of another family; calibrate with the `posterior` that it has.")
    return start.flow


@compiled
def _fit_to_prior(flow, prior: Prior, key, steps: int = 1000, samples: int = 512, learning_rate: float = 1e-2):
    """Minimise KL(flow || prior) in the coordinates, for priors that are no standard normal there."""
    moving, fixed = trainable(flow)
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def objective(moving, key):
        z, log_q = eqx.combine(moving, fixed).sample_and_log_prob(key, (samples,))
        return kl_from_prior(z, log_q, prior)

    def body(carry, i):
        moving, opt_state = carry
        gradient = jax.grad(objective)(moving, jax.random.fold_in(key, i))
        change, opt_state = optimiser.update(gradient, opt_state)
        return (eqx.apply_updates(moving, change), opt_state), None

    (moving, _), _ = jax.lax.scan(body, (moving, optimiser.init(moving)), jnp.arange(steps))
    return eqx.combine(moving, fixed)
