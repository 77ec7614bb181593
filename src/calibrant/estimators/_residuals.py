"""Columns of numbers about draws: their residuals, summed with powers of the root of their probability."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from calibrant._recording import AbstractRecorder, LogProbability
from calibrant._sampling import Draw
from calibrant.estimators._sites import Site


class Columns(eqx.Module):
    """Columns of numbers, one for each place of a draw, category and power of `sqrt(p)`."""

    sites: tuple[Site, ...] = eqx.field(static=True)
    degree: int = eqx.field(static=True)

    def _blocks(self) -> list[int]:
        """How many (category) blocks each site has."""
        return [site.categories or 1 for site in self.sites]

    @property
    def blocks(self) -> int:
        """All of them."""
        return sum(self._blocks())

    @property
    def powers(self) -> int:
        """Columns of a block."""
        return self.degree + 1

    def index(self, draw: Draw) -> int:
        """The place of a draw among the sites."""
        return next(i for i, site in enumerate(self.sites) if site.draws(draw))

    def block(self, draw: Draw) -> int:
        """The first block of a draw."""
        return sum(self._blocks()[: self.index(draw)])

    def known(self) -> np.ndarray:
        """(sites, blocks): whether the probabilities of a block are settled before the draws at a site are made."""
        sites = self.sites
        before = [[i <= j and sites[j].knows(sites[i]) for i in range(len(sites))] for j in range(len(sites))]
        return np.repeat(before, self._blocks(), axis=1)

    def spread(self, p: Array) -> list[Array]:
        """Powers of `sqrt(p)`."""
        root = jnp.sqrt(jnp.clip(jax.lax.stop_gradient(p), 0, 1))
        return [root**k for k in range(self.powers)]

    def place(self, draw: Draw, rows: Float[Array, "rows ..."]) -> Float[Array, "blocks ..."]:
        """The rows of a draw among the rows of all."""
        everything = jnp.zeros((self.blocks, *rows.shape[1:]), rows.dtype)
        return jax.lax.dynamic_update_slice_in_dim(everything, rows, self.block(draw), 0)


class Residuals(AbstractRecorder):
    """Log-probabilities by site, and for each column the residuals `b - p` and the differentiable expectations `p`."""

    columns: Columns

    def zero(self):
        columns = jnp.zeros((self.columns.blocks, self.columns.powers))
        return {"log_prob": jnp.zeros(len(self.columns.sites)), "residual": columns, "expected": columns}

    def _notes(self, draw: Draw, log_prob: Array, sample: Array, p: Array, where: Array):
        """`sample`, `p`: (rows, *agents)."""
        basis = self.columns.spread(p)

        def over_agents(x: Array) -> Float[Array, "rows powers"]:
            """Column by column: the columns of all agents side by side would have to be written and read again."""
            each = [(row * x * where).reshape(x.shape[0], -1) for row in basis]
            return jnp.stack([jnp.sum(x, axis=1) for x in each], axis=1)

        residual, expected = over_agents(jax.lax.stop_gradient(sample - p)), over_agents(p)
        place = self.columns.place
        log_prob = jnp.zeros(len(self.columns.sites), log_prob.dtype).at[self.columns.index(draw)].set(log_prob)
        return {"log_prob": log_prob, "residual": place(draw, residual), "expected": place(draw, expected)}

    def bernoulli(self, draw, sample, p, where):
        p = jnp.clip(p, 0, 1)
        decides = jax.lax.stop_gradient(where > 0).astype(p.dtype)
        return self._notes(draw, LogProbability().bernoulli(draw, sample, p, where), sample[None], p[None], decides)

    def categorical(self, draw, sample, p):
        p = jnp.broadcast_to(p, sample.shape)
        return self._notes(draw, LogProbability().categorical(draw, sample, p), sample, p, jnp.ones((), p.dtype))
