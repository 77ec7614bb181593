"""Agent-venue membership as a linear operator."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from calibrant.networks._rows import sum_rows, take_rows


class Incidence(eqx.Module):
    """Which venue each agent belongs to, if any: one kind of venue, at most one membership an agent.

    As a 0/1 matrix M of shape (venues, agents), `sum` is M and `spread` its transpose.

    **Arguments:** `venue_of`, integers of shape (agents,), from 0 to `n_venues - 1`, or -1 for no venue.

    **Raises:** `ValueError` for indices out of range.
    """

    venue_of: Int[Array, " agents"]
    sizes: Int[Array, " venues"]
    n_venues: int = eqx.field(static=True)
    is_sorted: bool = eqx.field(static=True)
    #: Size of the groups if agents stand in order in groups of equal size (the last may be smaller), else `None`.
    #: Sums and spreads are then reshapes, some ten times faster than segment sums and gathers.
    group_size: int | None = eqx.field(static=True)

    def __init__(self, venue_of, n_venues: int | None = None):
        index = np.asarray(venue_of)
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                f"Incidence needs a one-dimensional array of integers, got {index.dtype} of shape {index.shape}."
            )
        largest = int(index.max(initial=-1))
        n_venues = largest + 1 if n_venues is None else n_venues
        if int(index.min(initial=0)) < -1 or largest >= n_venues:
            raise ValueError(f"Incidence needs venues from 0 to {n_venues - 1}, or -1 for none.")
        # Agents without a venue have an index past the last, which sums leave out.
        index = np.where(index < 0, n_venues, index)
        self.venue_of = jnp.asarray(index, dtype=jnp.int32)
        self.sizes = jnp.asarray(np.bincount(index, minlength=n_venues + 1)[:n_venues], dtype=jnp.int32)
        self.n_venues = int(n_venues)
        self.is_sorted = bool(np.all(np.diff(index) >= 0))
        size = -(-index.size // n_venues) if n_venues else 0
        in_blocks = size > 0 and np.array_equal(index, np.arange(index.size) // size)
        self.group_size = size if in_blocks else None

    @property
    def n_agents(self) -> int:
        return self.venue_of.shape[0]

    def sum(self, x: Float[Array, " agents"]) -> Float[Array, " venues"]:
        """Agents to venues. Sums of zeros and ones are exact in float32 up to 2^24 members a venue."""
        if self.group_size is not None:
            missing = self.n_venues * self.group_size - self.n_agents
            return jnp.sum(jnp.pad(x, (0, missing)).reshape(self.n_venues, self.group_size), axis=1)
        return sum_rows(x, self.venue_of, rows=self.n_venues, is_sorted=self.is_sorted)

    def spread(self, y: Float[Array, " venues"]) -> Float[Array, " agents"]:
        """Venues to agents; zero for agents without a venue."""
        if self.group_size is not None:
            return jnp.broadcast_to(y[:, None], (self.n_venues, self.group_size)).reshape(-1)[: self.n_agents]
        return take_rows(y, self.venue_of, rows=self.n_venues, is_sorted=self.is_sorted)

    def sum_of_others(self, x: Float[Array, " agents"]) -> Float[Array, " agents"]:
        """For each agent, the sum over everybody *else* in the venue.

        Leaving the agent out does nothing to a simulation in which nobody is both source and target, but its
        derivative would otherwise let agents infect themselves: most of the bias of straight-through gradients.
        """
        member = self.venue_of < self.n_venues
        return self.spread(self.sum(x)) - jnp.where(member, x, jnp.zeros_like(x))

    def mean_of_others(self, x: Float[Array, " agents"]) -> Float[Array, " agents"]:
        """`sum_of_others` over the number of others; zero for an agent who is alone."""
        others = self.spread(jnp.maximum(self.sizes - 1, 1).astype(x.dtype))
        return self.sum_of_others(x) / jnp.maximum(others, 1)
