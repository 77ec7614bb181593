"""The posterior: a distribution over the unconstrained coordinates of the prior, a normalizing flow or samples."""

import abc
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Float, PRNGKeyArray

from calibrant._prior import Prior
from calibrant.posteriors._samples import Chains


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

    def chains(self, draws: int) -> dict[str, Array] | None:
        """Markov chains, where it is made of them: name -> array of shape (chains, n, *shape), evenly thinned so that
        there are at most `draws` in all (one of each chain at least). `None` where it is not.
        """
        if not isinstance(self.flow, Chains) or int(self.flow.count) == 0:
            return None
        kept, n = int(self.flow.count), self.flow.points.shape[0]
        every = -(-kept // max(1, draws // n))
        values = jax.vmap(jax.vmap(self.prior.constrain))(self.flow.points[:, :kept:every])
        return {name: values[name] for name in self.prior.names}

    def log_prob(self, values: Mapping[str, Array]) -> Float[Array, ""]:
        """Log-density at one point. The change of variables is taken from the prior's own density.

        **Raises:** `ValueError` for posteriors made of samples, which have none.
        """
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
