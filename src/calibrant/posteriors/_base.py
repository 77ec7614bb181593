"""The posterior: a normalizing flow over the unconstrained coordinates of the prior."""

import abc
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Float, PRNGKeyArray

from calibrant._prior import Prior


class AbstractPosterior(eqx.Module):
    """A family of distributions, from which `build` makes a trainable one that starts at (or near) the prior."""

    @abc.abstractmethod
    def build(self, key: PRNGKeyArray, dim: int) -> AbstractDistribution:
        """A flowjax distribution over `dim` coordinates, the standard normal to begin with, fast to sample from.

        **Raises:** `ValueError` if the family does not exist in that dimension.
        """


class Posterior(eqx.Module):
    """A distribution over named parameters."""

    prior: Prior
    flow: AbstractDistribution

    def sample_coordinates(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Reparameterised draws of the coordinates, and their log-density."""
        return self.flow.sample_and_log_prob(key, (n,))

    def sample(self, key: "PRNGKeyArray | int", n: int) -> dict[str, Array]:
        """`n` draws: name -> array of shape (n, *shape)."""
        key = jax.random.key(key) if isinstance(key, int) else key
        draws = _constrained_sample(self, key, n)
        return {name: draws[name] for name in self.prior.names}  # compiled programs return dictionaries sorted

    def log_prob(self, values: Mapping[str, Array]) -> Float[Array, ""]:
        """Log-density at one point. The change of variables is taken from the prior's own density."""
        z = self.prior.unconstrain(values)
        return self.flow.log_prob(z) - self.prior.log_base(z) + self.prior.log_prob(values)

    def quantiles(
        self, probabilities=(0.05, 0.5, 0.95), *, key: "PRNGKeyArray | int" = 0, n: int = 10_000
    ) -> dict[str, np.ndarray]:
        """Name -> quantiles, shape (len(probabilities), *shape), from `n` draws."""
        draws = self.sample(key, n)
        return {name: np.quantile(np.asarray(x), probabilities, axis=0) for name, x in draws.items()}


@eqx.filter_jit
def _constrained_sample(posterior: Posterior, key: PRNGKeyArray, n: int) -> dict[str, Array]:
    z, _ = posterior.sample_coordinates(key, n)
    return jax.vmap(posterior.prior.constrain)(z)


def kl_from_prior(z: Float[Array, "n dim"], log_q: Float[Array, " n"], prior: Prior) -> Float[Array, ""]:
    """Monte Carlo estimate of KL(q || prior), from draws of q. Invariant: taken in the coordinates."""
    return jnp.mean(log_q - jax.vmap(prior.log_base)(z))
