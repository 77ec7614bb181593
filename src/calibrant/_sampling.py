"""Sampling rules: how one discrete draw is realised, and what its derivative is taken to be.

A rule is local to a draw. How whole simulations are combined into an estimate of a gradient is the business of
`calibrant.estimators`.

Every rule that returns a hard sample returns the *same* sample for the same seed: rules differ in tangents only, so a
simulation does not change when its gradient does.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which draw of a simulation: in `init`, `step` or `observe` (`phase`), at which time (0: `init`) and site."""

    phase: str
    time: Any
    site: str
    #: Whether it stands inside `rng.scan`, `rng.vmap` or under `rng.at` and may be made many times a step.
    inner: bool


class AbstractSamplingPlan(eqx.Module):
    """Which rule each draw of a simulation gets."""

    #: Whether samples are exactly 0 or 1 (a relaxed sample has no probability, so the score function refuses it).
    hard: AbstractClassVar[bool]

    def at(self, update: Int[Array, ""]) -> "AbstractSamplingPlan":
        """The plan of one update of a calibration, where it follows a schedule."""
        del update
        return self

    @abc.abstractmethod
    def of(self, draw: Draw) -> "AbstractSamplingRule":
        """The rule for one draw."""


class AbstractSamplingRule(AbstractSamplingPlan):
    """How Bernoulli and categorical draws are realised and differentiated, all of them alike."""

    def of(self, draw):
        """The rule itself."""
        del draw
        return self

    @abc.abstractmethod
    def bernoulli(self, p: Float[Array, "*n"], where: Float[Array, "*n"], u: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """A sample of the event `where * p`, given uniforms `u` in (0, 1)."""

    @abc.abstractmethod
    def categorical(
        self, p: Float[Array, "k ..."], u: Float[Array, "*n"], exponentials: Callable[[], Float[Array, "k+1 *n"]]
    ) -> Float[Array, "k *n"]:
        """A one-hot sample of `p`, categories first: the long axis of agents stays contiguous.

        `p` broadcasts against (k, *n). `u` chooses the category; `exponentials()` gives further standard exponentials,
        which only rules that need the full Gumbel noise ask for.
        """


def _hard_bernoulli(p, where, u):
    happens = jnp.where(u < p, where, jnp.zeros_like(where))
    return jnp.where((p != p) & (where > 0), p, happens)  # an undefined probability is not a silent "no"


def _hard_categorical(p, u):
    """One-hot sample by inversion of the cumulative distribution: one uniform, whatever the number of categories."""
    upper = jnp.cumsum(p, axis=0)
    # Counting the bounds passed makes the sample one-hot whatever the rounding. No concatenation: fused with the
    # generator it would be evaluated element by element.
    category = jnp.sum((u * upper[-1] >= upper[:-1]).astype(jnp.int32), axis=0)
    index = jnp.arange(p.shape[0], dtype=jnp.int32).reshape(-1, *[1] * u.ndim)
    one_hot = (category == index).astype(p.dtype)
    return jnp.where(upper[-1] == upper[-1], one_hot, upper[-1])  # undefined probabilities are no silent choice


@jax.custom_jvp
def with_tangent_of(value, surrogate):
    """`value`, whose derivative is that of `surrogate`."""
    del surrogate
    return value


@with_tangent_of.defjvp
def _with_tangent_of_jvp(primals, tangents):
    value, surrogate = primals
    return with_tangent_of(value, surrogate), tangents[1]


class Hard(AbstractSamplingRule):
    """A hard sample with no derivative at all: what the score function needs."""

    hard = True

    def bernoulli(self, p, where, u):
        return jax.lax.stop_gradient(_hard_bernoulli(p, where, u))

    def categorical(self, p, u, exponentials):
        del exponentials
        return jax.lax.stop_gradient(_hard_categorical(p, u))


class StraightThrough(AbstractSamplingRule):
    """A hard sample whose derivative is that of its expectation (Bengio, Leonard, Courville 2013, arXiv 1308.3432).

    For a Bernoulli draw of the event `where * p` the tangent is `p dwhere + where dp`, for a categorical draw `dp`.
    Biased as soon as the sample is used nonlinearly; its noise falls with the number of agents.
    """

    hard = True

    def bernoulli(self, p, where, u):
        return with_tangent_of(jax.lax.stop_gradient(_hard_bernoulli(p, where, u)), where * p)

    def categorical(self, p, u, exponentials):
        del exponentials
        hard = jax.lax.stop_gradient(_hard_categorical(p, u))
        return with_tangent_of(hard, jnp.broadcast_to(p, hard.shape))


class GumbelSoftmax(AbstractSamplingRule):
    """Gumbel-softmax (Jang, Gu, Poole 2017, arXiv 1611.01144; Maddison, Mnih, Teh 2017, arXiv 1611.00712).

    The relaxed sample is `softmax((log p + g) / temperature)` with Gumbel noise `g`; for a Bernoulli draw the binary
    concrete `sigmoid((logit p + logit(1 - u)) / temperature)`. With `straight_through=True` (the default, and what the
    paper this package follows uses) the sample is hard and only its tangent is relaxed; otherwise the sample itself is
    relaxed, agents are fractions, and the simulation is a different one.

    The noise is drawn *given* the hard sample, so a hard sample is the one that every other rule draws.

    **Arguments:** `temperature`, a number, or a function of the number of the update (an optax schedule), which a
    calibration by `GVI` follows; `straight_through`.

    Not recommended as a default: on contact processes its bias grows quickly with the temperature (see the docs page
    on gradient estimators).
    """

    temperature: float | Float[Array, ""] | Callable
    straight_through: bool = eqx.field(static=True)

    hard = property(lambda self: self.straight_through)  # pyright: ignore[reportAssignmentType]

    def __init__(self, temperature: float | Array | Callable = 0.1, *, straight_through: bool = True):
        if isinstance(temperature, (int, float)) and not temperature > 0:
            raise ValueError(
                f"GumbelSoftmax needs a positive temperature, got {temperature}; use StraightThrough() for the limit 0."
            )
        self.temperature = temperature
        self.straight_through = straight_through

    def at(self, update):
        if not callable(self.temperature):
            return self
        return GumbelSoftmax(jnp.asarray(self.temperature(update)), straight_through=self.straight_through)

    def _now(self) -> "float | Array":
        if callable(self.temperature):
            raise ValueError("The temperature of GumbelSoftmax follows a schedule; take `at(update)` of it.")
        return self.temperature

    def bernoulli(self, p, where, u):
        soft = relaxed_bernoulli(p, u, self._now())
        if self.straight_through:
            return with_tangent_of(jax.lax.stop_gradient(_hard_bernoulli(p, where, u)), where * soft)
        return where * soft

    def categorical(self, p, u, exponentials):
        hard = jax.lax.stop_gradient(_hard_categorical(p, u))
        noise = gumbels_given(hard, jax.lax.stop_gradient(p), exponentials())
        soft = relaxed_categorical(p, noise, self._now())
        return with_tangent_of(hard, soft) if self.straight_through else soft


def relaxed_bernoulli(p: Array, u: Array, temperature: "float | Array") -> Array:
    """The binary concrete sample of probabilities `p` from uniforms `u`."""
    # A decision of probability 0 or 1 is no decision: its relaxation is itself. So is one of a probability that a
    # relaxed simulation alone comes to, whose logarithm has derivatives beyond what floats can hold.
    open_ = (p > least_probability(p.dtype)) & (p < 1)
    p_open = jnp.where(open_, p, 0.5)
    logit = jnp.log(p_open) - jnp.log1p(-p_open)
    noise = jnp.log1p(-u) - jnp.log(jnp.maximum(u, jnp.finfo(p.dtype).tiny))
    return jnp.where(open_, jax.nn.sigmoid((logit + noise) / jnp.asarray(temperature, p.dtype)), p)


def least_probability(dtype: Any) -> Any:
    """Below it a relaxation takes an event for impossible: 3e-10 in float32, so that powers of `1/p` are finite."""
    return jnp.finfo(dtype).tiny ** 0.25


def gumbels_given(hard: Float[Array, "k *n"], p: Float[Array, "k ..."], e: Float[Array, "k+1 *n"]) -> Array:
    """Gumbels given their argmax (Maddison, Tarlow, Minka 2014, arXiv 1411.0030), from standard exponentials `e`.

    With normalised `p`, `g_j = -log(e_j + p_j e_0)` for the losers, `g_k = -log(p_k e_0)` for the winner `k`.
    """
    return -jnp.log(p / jnp.sum(p, axis=0) * e[0] + (1 - hard) * e[1:])


def relaxed_categorical(p: Float[Array, "k ..."], noise: Float[Array, "k *n"], temperature: "float | Array") -> Array:
    """`softmax((log p + noise) / temperature)`; an impossible category stays impossible."""
    possible = p > least_probability(p.dtype)
    log_p = jnp.where(possible, jnp.log(jnp.where(possible, p, 1)), -jnp.inf)
    return jax.nn.softmax((log_p + noise) / jnp.asarray(temperature, noise.dtype), axis=0)


def bernoulli_log_prob(sample: Array, p: Array, where: Array) -> Array:
    """Log-probability of hard Bernoulli samples; exactly 0, with derivative 0, for those who do not decide."""
    happened = sample > 0
    undecided = (where > 0) & (p > 0) & (p < 1)
    p = jnp.where(undecided, p, 0.5)
    return jnp.where(undecided, jnp.where(happened, jnp.log(p), jnp.log1p(-p)), 0)


def categorical_log_prob(sample: Array, p: Array) -> Array:
    """Log-probability of one-hot samples under `p`, categories first."""
    chosen = jnp.sum(jax.lax.stop_gradient(sample) * p, axis=0)
    return jnp.log(chosen) - jnp.log(jnp.sum(p, axis=0))
