"""Simulations that are not finite: what they count as in the objective."""

import abc
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class Accounted(eqx.Module):
    """Simulations of one update or evaluation, those that failed accounted for.

    The loss is `sum(weights * losses) + mean(penalties)`.
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    #: Of each draw, whether it failed or not, and their gradients in the coordinates.
    penalties: Float[Array, " n"]
    slopes: Float[Array, "n dim"]
    #: What multiplies the gradient of each draw's log-density: where failing is a step that has no other derivative.
    scores: Float[Array, " n"] | None
    #: Simulations that count for nothing.
    left_out: Int[Array, ""]

    @property
    def loss(self) -> Float[Array, ""]:
        """NaN if no simulation counts."""
        loss = jnp.sum(self.weights * self.losses) + jnp.mean(self.penalties)
        return jnp.where(jnp.any(self.weights > 0), loss, jnp.nan)

    @property
    def standard_error(self) -> Float[Array, ""]:
        """Of `loss`."""
        counted = self.weights > 0
        count = jnp.maximum(jnp.sum(counted), 2).astype(self.losses.dtype)
        each = self.losses + self.penalties
        deviation = jnp.where(counted, each - jnp.sum(self.weights * each), 0)
        return jnp.sqrt(jnp.sum((self.weights * deviation) ** 2) * count / (count - 1))


class AbstractFailures(eqx.Module):
    """What simulations that are not finite count as."""

    #: Of `GVI.max_failed_fraction`, where nobody says.
    max_fraction: AbstractClassVar[float]

    def init(self, key: PRNGKeyArray, dim: int) -> "AbstractFailures":
        """Itself, ready for so many coordinates."""
        del key, dim
        return self

    @abc.abstractmethod
    def account(self, z: Float[Array, "n dim"], losses: Float[Array, " n"], finite: Bool[Array, " n"]) -> Accounted:
        """Losses at coordinates `z`, some of them of failed simulations."""

    def told(self, key: PRNGKeyArray, z: Float[Array, "n dim"], finite: Bool[Array, " n"]) -> "AbstractFailures":
        """Itself, having learnt from these simulations."""
        del key, z, finite
        return self


class LeaveOut(AbstractFailures):
    """They are left out of the mean, and counted.

    Safe where failures are few, which `GVI.max_failed_fraction` (one half by default) makes sure of. Where they depend
    on the parameters, the objective says nothing of how many there are, and its mean is one over draws that tend to
    succeed.
    """

    max_fraction = 0.5

    def account(self, z, losses, finite):
        losses, weights = masked(losses, finite)
        return Accounted(losses, weights, jnp.zeros_like(losses), jnp.zeros_like(z), None, jnp.sum(~finite))


class Penalise(AbstractFailures):
    """They have a loss that you state.

    That of a draw which fails has no derivative in its coordinates, so the share that fails is differentiated by the
    score function of the flow (Williams 1992): `E[(1_failed - share) (penalty - mean loss of the others) d log q]`.
    Exact where the loss of simulations that barely succeed is that mean, and for `FlowScore` in any case.

    **Arguments:** `loss`, above that of any simulation you would accept.
    """

    loss: float

    max_fraction = 1.0

    def account(self, z, losses, finite):
        n = losses.shape[0]
        succeeded, weights = masked(losses, finite)
        failed = (~finite).astype(losses.dtype)
        others = (jnp.sum(failed) - failed) / max(n - 1, 1)
        jump = jnp.where(jnp.any(finite), self.loss - jnp.sum(weights * succeeded), 0)
        equal = jnp.full_like(losses, 1 / n)
        losses = jnp.where(finite, succeeded, self.loss)
        scores = jnp.asarray(jump * (failed - others) / n)
        return Accounted(losses, equal, jnp.zeros_like(losses), jnp.zeros_like(z), scores, jnp.zeros((), jnp.int32))


class LearnProbability(AbstractFailures):
    """The probability of success is learnt, and that the data came from a run which succeeded is part of the data.

    `-log P(success | theta)` is added to the loss of every draw: with a log-likelihood, `p(y, success | theta)` is the
    product of `P(success | theta)` and the likelihood given success. The mean over simulations that succeeded weighs
    them by `1 / P`, at most `1 / floor`, or it would be a mean over draws that tend to succeed.

    `P` is a small network of the coordinates, trained on a sample of all simulations so far, from update to update.

    **Arguments:** `floor`; `width`, of two hidden layers; `memory`, simulations that are kept; `learning_rate`, of
    `passes` steps of Adam an update, on `batch` of them each.
    """

    floor: float = 0.1
    width: int = eqx.field(default=16, static=True)
    memory: int = eqx.field(default=4096, static=True)
    learning_rate: float = eqx.field(default=3e-3, static=True)
    passes: int = eqx.field(default=5, static=True)
    batch: int = eqx.field(default=256, static=True)
    network: eqx.nn.MLP | None = None
    optimiser: PyTree[Array] = None
    seen: "tuple[Array, Array, Array] | None" = None

    max_fraction = 1.0

    def __check_init__(self):
        if not 0 < self.floor <= 1:
            raise ValueError(f"LearnProbability needs a `floor` above 0, up to 1, got {self.floor}.")

    def init(self, key, dim):
        network: Any = eqx.nn.MLP(dim, "scalar", self.width, 2, activation=jax.nn.tanh, key=key)
        # It begins with success all but certain, everywhere.
        network = eqx.tree_at(lambda n: n.layers[-1].weight, network, replace_fn=lambda w: 0 * w)
        network = eqx.tree_at(lambda n: n.layers[-1].bias, network, replace_fn=lambda b: 0 * b + 3)
        empty = jnp.zeros((self.memory, dim)), jnp.zeros(self.memory), jnp.zeros((), jnp.int32)
        optimiser = self._adam.init(eqx.filter(network, eqx.is_inexact_array))
        nothing: Any = (None, None, None)
        new: Any = (network, optimiser, empty)
        return eqx.tree_at(
            lambda f: (f.network, f.optimiser, f.seen), self, new, is_leaf=lambda x: x is None or x is nothing
        )

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def probability(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Of success, at coordinates."""
        assert self.network is not None
        return jax.nn.sigmoid(self.network(z))

    def account(self, z, losses, finite):
        network = self.network
        assert network is not None
        penalties, slopes = jax.vmap(jax.value_and_grad(lambda x: jax.nn.softplus(-network(x))))(z)
        losses, _ = masked(losses, finite)
        weights = finite / jnp.maximum(jax.vmap(self.probability)(z), self.floor)
        weights = weights / jnp.maximum(jnp.sum(weights), 1e-6)
        return Accounted(losses, weights, penalties, slopes, None, jnp.zeros((), jnp.int32))

    def told(self, key, z, finite):
        assert self.seen is not None
        keys = jax.random.split(key, 2)

        def kept(carry, new):
            # Reservoir sampling (Vitter 1985): all simulations so far are kept with equal probability.
            at, ok, count = carry
            key, x, y = new
            slot = jnp.where(count < self.memory, count, jax.random.randint(key, (), 0, count + 1))
            return (at.at[slot].set(x, mode="drop"), ok.at[slot].set(y, mode="drop"), count + 1), None

        news = jax.random.split(keys[0], z.shape[0]), z, finite.astype(z.dtype)
        seen, _ = jax.lax.scan(kept, self.seen, news)
        at, ok, count = seen
        moving, fixed = eqx.partition(self.network, eqx.is_inexact_array)

        def surprise(moving, rows):
            network: Any = eqx.combine(moving, fixed)
            logits = jax.vmap(network)(at[rows])
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, ok[rows]))

        def learnt(carry, key):
            moving, optimiser = carry
            rows = jax.random.randint(key, (self.batch,), 0, jnp.minimum(count, self.memory))
            change, optimiser = self._adam.update(jax.grad(surprise)(moving, rows), optimiser)
            return (eqx.apply_updates(moving, change), optimiser), None

        (moving, optimiser), _ = jax.lax.scan(learnt, (moving, self.optimiser), jax.random.split(keys[1], self.passes))
        new: Any = (eqx.combine(moving, fixed), optimiser, seen)
        return eqx.tree_at(lambda f: (f.network, f.optimiser, f.seen), self, new)


def masked(losses: Float[Array, " n"], finite: Bool[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Losses with those that failed set to 0, and weights that average the others."""
    count = jnp.maximum(jnp.sum(finite), 1).astype(losses.dtype)
    return jnp.where(finite, losses, 0), finite.astype(losses.dtype) / count
