"""Point estimates by gradients, with a first uncertainty: the mode of the generalised posterior and Laplace's method.

The mode, in the coordinates of the prior, minimises

    J(z) = E_seed[loss(simulations(theta(z), seed), y)] - w log prior(z)

by stochastic gradients (Adam: Kingma, Ba 2015, arXiv 1412.6980), from many starts side by side. At the best of them the
generalised posterior is taken for a normal distribution (Tierney, Kadane 1986, JASA 81(393)) of precision `H / w`, with
H the Hessian of J. It is taken by central differences of gradients at common random numbers: the second derivative of a
straight-through gradient means nothing, the difference of two of them does.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import as_seed
from calibrant.estimators import AbstractEstimator, Pathwise
from calibrant.inference._base import (
    AbstractMethod,
    Evaluation,
    Result,
    State,
    UpdateRecord,
    planned_updates,
    require_same_prior,
)
from calibrant.inference._losses import (
    Differentiation,
    evaluate_posterior,
    key_of,
    masked_mean,
    settled,
    words_of,
)
from calibrant.inference._repeat import repeated
from calibrant.posteriors import FullRankGaussian, Posterior

_SHOWN = 0
_START, _AT_THE_END = 0, np.uint32(0xFFFE0000)  # the second far above any update number


class Descent(eqx.Module):
    """Where the starts have come to, and what was found at the best of them."""

    position: Float[Array, "starts dim"]
    #: The last positions with a finite loss and gradient, to which a start goes back from one without.
    finite: Float[Array, "starts dim"]
    optimiser: PyTree[Array]
    #: Objective of each start: of its last finite update, and, at the end, on common random numbers.
    objective: Float[Array, " starts"]
    loss: Float[Array, " starts"]
    #: Of J / w, ascending; NaN until the end.
    eigenvalues: Float[Array, " dim"]
    #: Along which of them the width of the prior was taken.
    from_prior: Bool[Array, " dim"]
    #: How far the matrix of differences is from symmetric, of which a gradient's is 0: norm over norm.
    asymmetry: Float[Array, ""]
    gradients: Int[Array, ""]
    failed: Int[Array, ""]


class Point(AbstractMethod):
    """The mode of the generalised posterior in the coordinates of the prior, and a normal distribution around it.

    The cheapest method, and a local one: it knows one mode, and its width from the curvature there. A mode belongs to
    its coordinates; in others it is elsewhere.

    **Arguments:**

    - `weight`: `w`, above 0, as in `GVI`.
    - `starts`: draws of the prior (or of the start) to descend from; `replicates`: simulations of each in an update.
    - `max_updates`; `learning_rate` of Adam after clipping at norm 1 for each start, which falls along half a cosine to
      a hundredth of itself; or `optimiser`, an optax transformation in its place.
    - `estimator`, `mode`, `horizon`, `simulations_at_once`: of the gradient, as in `GVI`; those that are trained as
      they go (REBAR, RELAX) are refused.
    - `end_simulations`: sets of common random numbers (of `replicates` each) on which the starts are compared and the
      Hessian is taken after the last update; `hessian_step`, of its central differences, in the coordinates, in which
      priors have a standard deviation of about 1. It is wide, so that discrete draws change.
    - `evaluate_every`: updates between two reports; `evaluation_simulations`, of the evaluation at the end.
    - `max_failed_fraction`: of simulations since the last report; more is an error.

    **The Hessian may not be positive definite**, at a saddle or by noise. Along each of its eigenvectors where the
    precision is not above that of the prior, the variance of the prior is taken: the result is nowhere wider than the
    prior. `Calibration.diagnostics` has the eigenvalues, and how often that was.
    """

    weight: float = 1.0
    starts: int = eqx.field(default=8, static=True)
    replicates: int = eqx.field(default=1, static=True)
    max_updates: int = eqx.field(default=500, static=True)
    learning_rate: float | None = None
    optimiser: optax.GradientTransformation | None = eqx.field(default=None, static=True)
    estimator: AbstractEstimator = eqx.field(default_factory=Pathwise)
    mode: AbstractMode = eqx.field(default_factory=ReverseMode)
    horizon: AbstractHorizon = eqx.field(default_factory=FullHorizon)
    simulations_at_once: int | None = eqx.field(default=None, static=True)
    end_simulations: int = eqx.field(default=50, static=True)
    hessian_step: float = eqx.field(default=0.1, static=True)
    evaluate_every: int = eqx.field(default=50, static=True)
    evaluation_simulations: int = eqx.field(default=100, static=True)
    max_failed_fraction: float = eqx.field(default=0.5, static=True)

    def __check_init__(self):
        for name in (
            "starts", "replicates", "max_updates", "end_simulations", "evaluate_every", "evaluation_simulations",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Point needs `{name}` to be a whole number >= 1, got {value!r}.")
        if not self.weight > 0:
            raise ValueError(f"Point needs a weight > 0, got {self.weight}: at 0 there is no posterior to be normal.")
        if self.optimiser is not None and self.learning_rate is not None:
            raise ValueError("Point takes a `learning_rate` or an `optimiser`, not both.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"Point needs a `learning_rate` above 0, got {self.learning_rate}.")
        if not 0 < self.hessian_step < math.inf:
            raise ValueError(f"Point needs a `hessian_step` above 0, got {self.hessian_step}.")
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"`max_failed_fraction` is from 0 to 1, got {self.max_failed_fraction}.")

    @property
    def _how(self) -> Differentiation:
        return Differentiation(self.estimator, self.mode, self.horizon, self.simulations_at_once)

    def _optimiser(self) -> optax.GradientTransformation:
        if self.optimiser is not None:
            return self.optimiser
        rate = 0.05 if self.learning_rate is None else self.learning_rate
        schedule = optax.cosine_decay_schedule(rate, self.max_updates, 0.01)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def runs_an_update(self, problem, dim):
        return self.starts * self.replicates * self._how.runs(problem, dim)

    def _runs_at_the_end(self, problem: Problem, dim: int) -> tuple[int, int]:
        """Simulations to compare the starts, and for the Hessian."""
        each = self.end_simulations * self.replicates
        return self.starts * each, 2 * dim * each * self._how.runs(problem, dim)

    def check(self, problem, prior):
        self._how.check(problem, prior, self.starts, self.replicates, "Point")

    def with_budget(self, problem, prior, simulations):
        # The end may take a third.
        each = sum(self._runs_at_the_end(problem, prior.dim)) // self.end_simulations
        end = min(self.end_simulations, simulations // 3 // each)
        updates = (simulations - end * each) // self.runs_an_update(problem, prior.dim)
        if end < 2 or updates < 10:
            least = max(6 * each, 15 * self.runs_an_update(problem, prior.dim))
            raise ValueError(f"Point with these settings needs {least} simulations or more, got {simulations}.")
        updates, every = planned_updates(updates, 10)
        return dataclasses.replace(self, max_updates=updates, end_simulations=end, evaluate_every=every)

    def init(self, problem, prior, seed, start=None):
        self.check(problem, prior)
        words = as_seed(seed)
        key = key_of(words, _START)
        if start is None:
            position = jax.vmap(prior.unconstrain)(prior.sample(key, self.starts))
        else:
            require_same_prior(start, prior)
            position, _ = start.sample_coordinates(key, self.starts)
        flow = FullRankGaussian().build(key, prior.dim)
        optimiser = jax.vmap(self._optimiser().init)(position)
        far = jnp.full(self.starts, jnp.inf, position.dtype)
        nan = jnp.full(prior.dim, jnp.nan, position.dtype)
        zero = jnp.zeros((), jnp.int32)
        descent = Descent(position, position, optimiser, far, far, nan, jnp.zeros(prior.dim, bool), nan[0], zero, zero)
        return settled(State(Posterior(prior, flow), descent, None, None, zero, words))

    def step(self, problem, state, updates):
        state, record = _updates(self, problem, state, updates, jnp.asarray(updates))
        if int(state.update) < self.max_updates:
            return state, record
        compared, hessian = self._runs_at_the_end(problem, state.posterior.prior.dim)
        state = self._laplace(problem, state, hessian)
        last = {"simulations": compared + hessian, "gradients": hessian * self._how.differentiates}
        extra = {name: x.at[-1].add(last[name]) if name in last else x for name, x in record.extra.items()}
        return state, eqx.tree_at(lambda r: r.extra, record, extra)

    def _laplace(self, problem: Problem, state: State, gradients: int) -> State:
        """The normal distribution at the best start. Its few matrices are decomposed here, in NumPy."""
        prior, descent = state.posterior.prior, state.optimiser
        words = words_of(state.seed, (self.end_simulations, self.replicates), jnp.asarray(_AT_THE_END))
        how = _prepared(self, problem, state)
        means, finite = _compare(how, problem, prior, descent.finite, words)
        objective = means - self.weight * jax.vmap(prior.log_base)(descent.finite)
        objective = jnp.where(jnp.isfinite(objective), objective, jnp.inf)
        order = [
            (-int(f), float(o)) if math.isfinite(o) else (1, math.inf) for f, o in zip(finite, objective, strict=True)
        ]
        best = min(range(self.starts), key=lambda i: order[i])
        centre = descent.finite[best]
        rows = np.asarray(
            _rows_of_hessian(how, problem, prior, centre, words, self.hessian_step, self.weight), np.float64
        ) / self.weight  # fmt: skip
        spread = _prior_covariance(prior)
        usable = bool(np.all(np.isfinite(rows)))
        precision = 0.5 * (rows + rows.T) if usable else np.linalg.inv(spread)
        size = float(np.linalg.norm(rows + rows.T)) if usable else 0.0
        asymmetry = float(np.linalg.norm(rows - rows.T)) / size if size > 0 else math.nan
        values, vectors = np.linalg.eigh(precision)
        widths = np.einsum("ij,ik,kj->j", vectors, spread, vectors)  # variances of the prior along the eigenvectors
        from_prior = ~(values * widths > 1) if usable else np.ones(prior.dim, bool)
        variances = np.where(from_prior, widths, 1 / np.where(from_prior, 1.0, values))
        root = np.linalg.cholesky((vectors * variances) @ vectors.T)
        flow = FullRankGaussian().around(centre, jnp.asarray(root, centre.dtype))
        found = eqx.tree_at(
            lambda d: (d.objective, d.loss, d.eigenvalues, d.from_prior, d.asymmetry, d.gradients),
            descent,
            (
                objective,
                means,
                jnp.asarray(values if usable else np.full(prior.dim, np.nan), centre.dtype),
                jnp.asarray(from_prior),
                jnp.asarray(asymmetry, centre.dtype),
                descent.gradients + gradients * self._how.differentiates,
            ),
        )
        return State(Posterior(prior, flow), settled(found), None, None, state.update, state.seed)

    def evaluate(self, problem, state, stream):
        if stream != _SHOWN:
            return evaluate_posterior(
                self._how, problem, state.posterior, state.seed, stream, self.evaluation_simulations, self.replicates,
                self.weight,
            )  # fmt: skip
        return _shown(state)

    def terminate(self, history):
        if not history or history[-1]["update"] == 0:
            return None
        if not math.isfinite(history[-1]["loss"]):
            return Result.NON_FINITE
        return Result.MAX_UPDATES if history[-1]["update"] >= self.max_updates else None

    def explain(self, result):
        if result is Result.INTERRUPTED:
            return "Interrupted before its width was found; the posterior is the prior."
        if result is Result.NON_FINITE:
            return "From no start was there a finite loss; narrow the priors, or allow more `starts`."
        return None

    def diagnose(self, state):
        descent, prior = state.optimiser, state.posterior.prior
        if int(state.update) < self.max_updates:
            return {"laplace": False, "gradients": int(descent.gradients)}
        eigenvalues = np.asarray(descent.eigenvalues, float)
        positive = bool(np.all(eigenvalues > 0))
        mode = prior.constrain(_centre(state.posterior.flow))
        count = int(np.sum(descent.from_prior))
        if np.all(np.isfinite(eigenvalues)):
            said = "is positive definite" if positive else "is not positive definite"
        else:
            said = "could not be taken, as some simulations near the mode are not finite"
        said = f"The Hessian at the mode {said}"
        if count:
            said += f"; along {count} of {prior.dim} directions, where it is no narrower, the prior's width was taken"
        return {
            "laplace": True,
            "mode": {name: np.asarray(x).tolist() for name, x in mode.items()},
            "objective_by_start": [float(x) if np.isfinite(x) else None for x in np.asarray(descent.objective)],
            "hessian": said + ".",
            "positive_definite": positive,
            "precision_eigenvalues": [float(x) if np.isfinite(x) else None for x in eigenvalues],
            "directions_from_prior": count,
            "asymmetry": float(descent.asymmetry) if np.isfinite(descent.asymmetry) else None,
            "gradients": int(descent.gradients),
        }


def _prepared(method: Point, problem: Problem, state: State) -> Differentiation:
    estimator = method.estimator.prepare(problem, key_of(state.seed, _START)).at(state.update)
    return Differentiation(estimator, method.mode, method.horizon, method.simulations_at_once)


@compiled
def _updates(method: Point, problem: Problem, state: State, updates: int, count: Array):
    return repeated(lambda s: _update(method, problem, s), state, updates, count)


def _update(method: Point, problem: Problem, state: State) -> tuple[State, UpdateRecord]:
    descent, prior, w = state.optimiser, state.posterior.prior, method.weight
    how = _prepared(method, problem, state)
    z = descent.position
    words = words_of(state.seed, (method.starts, method.replicates), state.update + 1)
    losses, finite, g = how.gradients(problem, prior, z, words)
    log_prior, its_gradient = jax.vmap(jax.value_and_grad(prior.log_base))(z)
    gradient = jnp.where(finite[:, None], g - w * its_gradient, 0)
    change, optimiser = jax.vmap(method._optimiser().update)(gradient, descent.optimiser, z)

    def chosen(new: Array, old: Array) -> Array:
        """A start without a gradient learns nothing."""
        return jnp.where(finite.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    objective = losses - w * log_prior
    cost = method.runs_an_update(problem, prior.dim)
    new = Descent(
        position=chosen(z + change, descent.finite),
        finite=chosen(z, descent.finite),
        optimiser=jax.tree.map(chosen, optimiser, descent.optimiser),
        objective=chosen(objective, descent.objective),
        loss=chosen(losses, descent.loss),
        eigenvalues=descent.eigenvalues,
        from_prior=descent.from_prior,
        asymmetry=descent.asymmetry,
        gradients=descent.gradients + cost * how.differentiates,
        failed=jnp.sum(~finite).astype(jnp.int32),
    )
    nan = jnp.full((), jnp.nan, z.dtype)
    record = UpdateRecord(
        loss=masked_mean(losses, finite)[0],
        kl=nan,
        objective=nan,
        gradient_norm=masked_mean(jnp.linalg.norm(gradient, axis=1), finite)[0],
        signal_to_noise=nan,
        coordinates=z,
        finite=finite,
        extra={
            "best_loss": new.loss[jnp.argmin(new.objective)],
            "simulations": jnp.full((), cost, jnp.int32),
            "gradients": jnp.full((), cost * how.differentiates, jnp.int32),
        },
    )
    return State(state.posterior, new, None, None, state.update + 1, state.seed), record


@compiled
def _compare(how: Differentiation, problem: Problem, prior: Prior, z: Array, words: Array) -> tuple[Array, Array]:
    """Mean loss of each start on the same sets of seeds, and how many of these are finite."""
    starts, sets = z.shape[0], words.shape[0]
    losses, finite = how.losses(problem, prior, jnp.repeat(z, sets, axis=0), jnp.tile(words, (starts, 1, 1)))
    finite = finite.reshape(starts, sets)
    return jax.vmap(lambda x, f: masked_mean(x, f)[0])(losses.reshape(starts, sets), finite), jnp.sum(finite, axis=1)


@compiled
def _rows_of_hessian(
    how: Differentiation, problem: Problem, prior: Prior, z: Array, words: Array, step: float, weight: float
) -> Float[Array, "dim dim"]:
    """Central differences of the gradient of J, one row a coordinate. NaN where no simulation is finite."""
    dim, sets = z.shape[0], words.shape[0]
    offsets = step * jnp.concatenate([jnp.eye(dim, dtype=z.dtype), -jnp.eye(dim, dtype=z.dtype)])
    points = z + offsets
    _, finite, g = how.gradients(problem, prior, jnp.repeat(points, sets, axis=0), jnp.tile(words, (2 * dim, 1, 1)))
    g, finite = g.reshape(2, dim, sets, dim), finite.reshape(2, dim, sets)
    both = jnp.all(finite, axis=0)  # a set of seeds counts where it is finite on either side
    differences = jnp.where(both[..., None], g[0] - g[1], 0)
    count = jnp.sum(both, axis=1)[:, None]
    mean = jnp.where(count > 0, jnp.sum(differences, axis=1) / jnp.maximum(count, 1).astype(z.dtype), jnp.nan)
    own = jax.vmap(jax.grad(prior.log_base))(points).reshape(2, dim, dim)
    return (mean - weight * (own[0] - own[1])) / (2 * step)


def _prior_covariance(prior: Prior, draws: int = 4096) -> np.ndarray:
    """Covariance of the prior in the coordinates: the identity, or, of bijections, estimated from draws."""
    if prior.is_standard:
        return np.eye(prior.dim)
    z = jax.vmap(prior.unconstrain)(prior.sample(jax.random.key(0), draws))
    return np.atleast_2d(np.cov(np.asarray(z, np.float64), rowvar=False))


def _centre(flow: Any) -> Array:
    return flow.bijection.loc


@compiled
def _shown(state: State) -> Evaluation:
    """The loss of the best start so far, as last seen: nothing is simulated for it."""
    descent = state.optimiser
    loss = descent.loss[jnp.argmin(descent.objective)]
    loss = jnp.where((state.update > 0) & ~jnp.isfinite(loss), jnp.nan, loss)
    nan = jnp.full((), jnp.nan, loss.dtype)
    return Evaluation(loss, nan, nan, nan, descent.failed, {"map_objective": jnp.min(descent.objective)})
