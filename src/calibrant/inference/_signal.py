"""Signal to noise of gradients: the norm of their mean, over the standard error of that mean. Of pure noise about 1."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: How much of the past an update leaves: gradients of some twenty updates count.
_KEPT = 0.9


def signal_to_noise(g: Float[Array, "n dim"], finite: Bool[Array, " n"]) -> Float[Array, ""]:
    """Of the gradients at the n parameter values of an update; NaN with fewer than two."""
    enough = jnp.sum(finite) >= 2
    count = jnp.maximum(jnp.sum(finite), 2).astype(g.dtype)
    mean = jnp.sum(jnp.where(finite[:, None], g, 0), axis=0) / count
    spread = jnp.where(finite[:, None], g - mean, 0)
    return jnp.where(enough, _ratio(mean, jnp.sum(spread**2) / (count * (count - 1))), jnp.nan)


class RunningSignal(eqx.Module):
    """The same where an update has one parameter value: of recent updates, the weight of one falling by a tenth with
    each that follows. Values of these are drawn from the posterior as those of one update are, which moves little."""

    mean: Float[Array, " dim"]
    square: Float[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def none(cls, dim: int) -> "RunningSignal":
        """Before the first update."""
        return cls(jnp.zeros(dim), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def told(self, g: Float[Array, "1 dim"], finite: Bool[Array, " 1"]) -> "RunningSignal":
        """With another gradient. One that is not finite, or whose square is not, is left out."""
        square = jnp.sum(g[0] ** 2)
        where = finite[0] & jnp.isfinite(square)
        new = RunningSignal(
            _KEPT * self.mean + (1 - _KEPT) * g[0], _KEPT * self.square + (1 - _KEPT) * square, self.count + 1
        )
        return RunningSignal(
            jnp.where(where, new.mean, self.mean),
            jnp.where(where, new.square, self.square),
            jnp.where(where, new.count, self.count),
        )

    @property
    def ratio(self) -> Float[Array, ""]:
        """NaN for fewer than ten gradients.

        With weights w that add up to one, the mean of independent gradients has `sum(w^2)` times the variance of one,
        of which `square - mean^2` is `1 - sum(w^2)` times.
        """
        left = _KEPT ** self.count.astype(self.mean.dtype)
        known = jnp.maximum(1 - left, jnp.finfo(self.mean.dtype).eps)  # what the weights add up to
        mean, square = self.mean / known, self.square / known
        share = (1 - _KEPT) / (1 + _KEPT) * (1 - left**2) / known**2
        eps = jnp.finfo(mean.dtype).eps
        variance = jnp.maximum(square - jnp.sum(mean**2), eps * square) / jnp.maximum(1 - share, eps)
        return jnp.where((self.count >= 10) & (square > 0), _ratio(mean, share * variance), jnp.nan)


def _ratio(mean: Float[Array, " dim"], variance_of_mean: Float[Array, ""]) -> Float[Array, ""]:
    tiny = jnp.finfo(mean.dtype).tiny
    return jnp.sqrt(jnp.sum(mean**2) / jnp.maximum(variance_of_mean, tiny))
