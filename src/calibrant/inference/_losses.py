"""Losses in the coordinates of a prior with their gradients, and the density that they define.

The generalised posterior (Bissiri, Holmes, Walker 2016, JRSS B 78(5), eq. 1; Knoblauch, Jewson, Damoulas 2022, JMLR
23(132)) of a loss, a prior and a weight `w` has density

    pi(theta) proportional to prior(theta) exp(-E_seed[loss(simulations(theta, seed), y)] / w)

which is what GVI approaches as its family grows.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._expect import expect
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._model import no_derivative, not_in_jax
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import seeds
from calibrant._sampling import StraightThrough
from calibrant.estimators import AbstractEstimator, FiniteDifferences, Pathwise
from calibrant.estimators.rebar import AbstractRelaxed
from calibrant.inference._base import Evaluation
from calibrant.inference._black_box import FlowScore
from calibrant.posteriors import Posterior, kl_from_prior
from calibrant.posteriors._samples import AbstractSamples


def check_outside(problem: Problem, mode: Any, horizon: Any, estimator: Any) -> None:
    """Refuse, with a `ValueError`, what looks into the steps of a simulator outside of JAX."""
    if problem.model.in_jax:
        return
    plain = ReverseMode, FullHorizon, (FiniteDifferences, FlowScore, Pathwise)
    for what, kind in zip((mode, horizon, estimator), plain, strict=True):
        if not isinstance(what, kind):
            raise ValueError(not_in_jax(problem.model, type(what).__name__))
    if isinstance(estimator, Pathwise) and not isinstance(estimator.rule, StraightThrough):
        raise ValueError(not_in_jax(problem.model, type(estimator.rule).__name__))


class Differentiation(eqx.Module):
    """How losses are simulated and differentiated: estimator, mode, horizon, and how many simulations at once."""

    estimator: AbstractEstimator
    mode: AbstractMode
    horizon: AbstractHorizon
    simulations_at_once: int | None = eqx.field(static=True)

    def check(
        self, problem: Problem, prior: Prior, batch: int, replicates: int, name: str, *, derivative: bool = True
    ) -> None:
        """Refuse, with a `ValueError`, what cannot work; `name`, of the method that asks; whether it differentiates."""
        prior.check(problem)
        estimator = self.estimator
        if not isinstance(estimator, AbstractEstimator):
            raise ValueError(
                f"{name} takes estimators of a gradient at a point, and {type(estimator).__name__} is of a posterior "
                "that moves: it is for GVI; choose another `estimator`, such as Pathwise()."
            )
        if derivative and not problem.model.differentiable and not isinstance(estimator, FiniteDifferences):
            raise ValueError(no_derivative(problem.model))
        check_outside(problem, self.mode, self.horizon, estimator)
        if isinstance(estimator, AbstractRelaxed):
            raise ValueError(
                f"{name} takes estimators that stay as they are, and {type(estimator).__name__} is trained as it goes; "
                "choose another `estimator`, such as Pathwise()."
            )
        unknown = [n for n in self.horizon.keep if n not in problem.parameter_names]
        if unknown:
            raise ValueError(
                f"The horizon keeps '{unknown[0]}', which is no parameter of the model; "
                f"it has {', '.join(problem.parameter_names)}."
            )
        if isinstance(estimator, FiniteDifferences):
            if estimator.scale is not None:
                raise ValueError(
                    f"In {name} the step of FiniteDifferences is in coordinates of the prior; leave `scale` out."
                )
            for what, plain in (("horizon", FullHorizon()), ("mode", ReverseMode())):
                if not eqx.tree_equal(getattr(self, what), plain):
                    raise ValueError(
                        f"FiniteDifferences takes no derivative of the simulator, so the `{what}` would have no "
                        "effect; leave it out, or choose another `estimator`."
                    )
            estimator = Pathwise()
        estimator.prepare(problem, jax.random.key(0)).check(problem, batch, replicates)

    @property
    def differentiates(self) -> bool:
        """Whether it takes derivatives of the simulator, and not differences."""
        return not isinstance(self.estimator, FiniteDifferences)

    def runs(self, problem: Problem, dim: int) -> int:
        """Simulations of each value and replicate for a loss with its gradient."""
        return self.estimator.runs(problem, dim)

    def losses(
        self, problem: Problem, prior: Prior, z: Float[Array, "n dim"], words: UInt32[Array, "n replicates 2"]
    ) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
        """Losses at coordinates, and whether they are finite."""
        estimator = Pathwise() if isinstance(self.estimator, FiniteDifferences) else self.estimator
        out = self._expect(problem, prior, z, words, estimator)
        return out.losses, out.finite

    def gradients(
        self, problem: Problem, prior: Prior, z: Float[Array, "n dim"], words: UInt32[Array, "n replicates 2"]
    ) -> tuple[Float[Array, " n"], Bool[Array, " n"], Float[Array, "n dim"]]:
        """Losses at coordinates, whether they and their gradients are finite, and these, in the coordinates."""
        if isinstance(self.estimator, FiniteDifferences):
            points, repeated = self.estimator.stencil(z, words)
            out = self._expect(problem, prior, points, repeated, Pathwise())
            losses, finite, g = self.estimator.combine(out.losses, out.finite, z.shape[0])
        else:

            def total(z):
                out = self._expect(problem, prior, z, words, self.estimator)
                return jnp.sum(out.losses), out

            g, out = jax.grad(total, has_aux=True)(z)
            losses, finite = out.losses, out.finite
        return losses, finite & jnp.all(jnp.isfinite(g), axis=1), g

    def _expect(self, problem: Problem, prior: Prior, z: Array, words: Array, estimator: AbstractEstimator):
        return expect(
            problem,
            jax.vmap(prior.constrain)(z),
            seeds=words,
            estimator=estimator,
            mode=self.mode,
            horizon=self.horizon,
            simulations_at_once=self.simulations_at_once,
        )


class Target(eqx.Module):
    """The generalised posterior in the coordinates, up to a constant, with the loss at fixed simulation seeds.

    Its value is that of the density; its derivative is whatever the estimator gives, which for discrete draws is not
    the derivative of the value. Where the loss is not finite the density is 0.
    """

    problem: Problem
    prior: Prior
    how: Differentiation
    weight: float
    words: UInt32[Array, "1 replicates 2"]

    def __call__(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        return _log_density(z, self)

    def loss(self, z: Float[Array, " dim"], log_density: Array) -> Array:
        """The loss at a point, from the log-density there."""
        return -self.weight * (log_density - self.prior.log_base(z))


@eqx.filter_custom_vjp
def _log_density(z, target):
    losses, finite = target.how.losses(target.problem, target.prior, z[None], target.words)
    return _value(z, target, losses[0], finite[0])


def _value(z, target, loss, finite):
    return jnp.where(finite, target.prior.log_base(z) - loss / target.weight, -jnp.inf)


@_log_density.def_fwd
def _forward(perturbed, z, target):
    del perturbed
    losses, finite, g = target.how.gradients(target.problem, target.prior, z[None], target.words)
    gradient = jax.grad(target.prior.log_base)(z) - g[0] / target.weight
    # A point whose gradient is not finite could be entered and never left.
    return _value(z, target, losses[0], finite[0]), jnp.where(finite[0], gradient, 0)


@_log_density.def_bwd
def _backward(gradient, cotangent, perturbed, z, target):
    del perturbed, z, target
    return cotangent * gradient


def key_of(seed: UInt32[Array, "2"], stream: Any) -> PRNGKeyArray:
    """The random key of a stream of a calibration."""
    return jax.random.wrap_key_data(seeds(seed, (), stream=stream).reshape(2))


def words_of(seed: UInt32[Array, "2"], shape: tuple[int, int], stream: Any) -> UInt32[Array, "n replicates 2"]:
    """Simulation seeds of a stream of a calibration."""
    return seeds(seeds(seed, 1, stream=stream)[0], shape, stream=1)


def settled(tree: Any) -> Any:
    """Arrays with explicit dtypes: weakly typed ones change their type in the first update, and compile anew."""
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.result_type(x)) if eqx.is_array(x) else x, tree)


#: Where the streams of evaluations begin.
EVALUATION_STREAMS = 0xFFFF0000  # far above any update number
_KL_DRAWS = 1000


@compiled
def evaluate_posterior(
    how: Differentiation,
    problem: Problem,
    posterior: Posterior,
    seed: UInt32[Array, "2"],
    stream: Array | int,
    simulations: int,
    replicates: int,
    weight: float,
) -> Evaluation:
    """The expected loss at draws of a posterior, each simulated with seeds of its own, and the objective of GVI."""
    stream = jnp.asarray(stream).astype(jnp.uint32) + jnp.uint32(EVALUATION_STREAMS)
    key, prior = key_of(seed, stream), posterior.prior
    z, log_q = posterior.sample_coordinates(key, max(simulations, _KL_DRAWS))
    losses, finite = how.losses(problem, prior, z[:simulations], words_of(seed, (simulations, replicates), stream))
    loss, error = masked_mean(losses, finite)
    kl = jnp.full((), jnp.nan, z.dtype)
    if not isinstance(posterior.flow, AbstractSamples):
        kl = kl_from_prior(z, log_q, prior)
    return Evaluation(loss, kl, loss + weight * kl, error, jnp.sum(~finite))


def masked_mean(x: Float[Array, " n"], finite: Bool[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean of what is finite (NaN of nothing), and its standard error."""
    count = jnp.sum(finite).astype(x.dtype)
    mean = jnp.where(count > 0, jnp.sum(jnp.where(finite, x, 0)) / jnp.maximum(count, 1), jnp.nan)
    deviation = jnp.where(finite, x - mean, 0)
    n = jnp.maximum(count, 2)
    return mean, jnp.sqrt(jnp.sum(deviation**2) / (n * (n - 1)))
