"""Agent-venue membership as a linear operator."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from calibrant.networks._rows import Venues, exact_sum_rows, take_rows


class Incidence(eqx.Module):
    """Which venue each agent belongs to, if any: one kind of venue, at most one membership an agent.

    As a 0/1 matrix M of shape (venues, agents), `sum` is M and `spread` its transpose.

    **Arguments:**

    - `venue_of`: integers of shape (agents,), from 0 to `n_venues - 1`, or -1 for no venue.
    - `blocks`: agents and venues are laid out in so many parts of equal length, every agent's venue in the agent's own
      part, so that parts can live on devices of their own and exchange nothing.
    - `cut`: the last so many venues of every part are copies of venues with agents in more than one part; a sum is
      the same in all copies.

    **Raises:** `ValueError` for indices out of range and for agents whose venue is in another part.
    """

    venue_of: Int[Array, " agents"]
    sizes: Int[Array, " venues"] | None
    n_venues: int = eqx.field(static=True)
    venues: Venues = eqx.field(static=True)

    def __init__(self, venue_of, n_venues: int | None = None, *, blocks: int = 1, cut: int = 0):
        index = np.asarray(venue_of)
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                f"Incidence needs a one-dimensional array of integers, got {index.dtype} of shape {index.shape}."
            )
        largest = int(index.max(initial=-1))
        n_venues = largest + 1 if n_venues is None else n_venues
        if int(index.min(initial=0)) < -1 or largest >= n_venues:
            raise ValueError(f"Incidence needs venues from 0 to {n_venues - 1}, or -1 for none.")
        if blocks < 1 or index.size % blocks or n_venues % blocks or not 0 <= cut <= n_venues // blocks:
            raise ValueError(
                f"{index.size} agents and {n_venues} venues cannot be laid out in {blocks} equal parts with {cut} "
                "copies of venues that are cut each."
            )
        sizes = _counts(index, n_venues)
        if blocks > 1:
            part = np.repeat(np.arange(blocks), index.size // blocks)
            if np.any((index >= 0) & (index // max(n_venues // blocks, 1) != part)):
                raise ValueError(f"Incidence in {blocks} blocks needs the venue of every agent in the agent's own.")
            if cut:
                copies = sizes.reshape(blocks, -1)
                copies[:, -cut:] = copies[:, -cut:].sum(0)
        # Agents without a venue have an index past the last, which sums leave out.
        index = np.where(index < 0, n_venues, index)
        parts, size = blocks, -(-index.size // n_venues) if n_venues else 0
        in_groups = size > 0 and blocks == 1 and np.array_equal(index, np.arange(index.size) // size)
        if in_groups and index.size == n_venues * size:
            blocks = n_venues  # every group is a block of its own
        self.venue_of = jnp.asarray(index, dtype=jnp.int32)
        self.sizes = jnp.asarray(sizes, dtype=jnp.int32)
        self.n_venues = int(n_venues)
        self.venues = Venues(
            rows=int(n_venues),
            is_sorted=bool(np.all(np.diff(index.reshape(parts, -1)) >= 0)),
            largest=max(int(sizes.max(initial=1)), 1),
            # Sums and spreads are then reshapes, some ten times faster than segment sums and gathers.
            group_size=size if in_groups else None,
            blocks=int(blocks),
            cut=int(cut),
        )

    @classmethod
    def laid_out(cls, venue_of: Int[Array, " agents"], venues: Venues) -> "Incidence":
        """One whose layout is known, and nothing of which need be in one place: sizes are not counted.

        `venue_of` is `venues.rows` for agents without a venue.
        """
        made = object.__new__(cls)
        for name, value in {"venue_of": venue_of, "sizes": None, "n_venues": venues.rows, "venues": venues}.items():
            object.__setattr__(made, name, value)
        return made

    @property
    def n_agents(self) -> int:
        return self.venue_of.shape[0]

    def sum(self, x: Float[Array, " agents"], *, wide: bool = True) -> Float[Array, " venues"]:
        """Agents to venues, in fixed point: the same whatever the order of agents, the device and the number of them.

        Sums of zeros and ones are exact up to 2^24 members a venue. Of others, every value is rounded to
        `2^-60 * largest |x| * size of the largest venue ^ 2`; with `wide=False`, in half the time,
        to `2^-30 * largest |x| * size of the largest venue`, which is enough for values of a few orders of magnitude.
        Derivatives are in floating point.
        """
        return exact_sum_rows(x, self.venue_of, self.venues, wide=wide)

    def spread(self, y: Float[Array, " venues"]) -> Float[Array, " agents"]:
        """Venues to agents; zero for agents without a venue."""
        return take_rows(y, self.venue_of, self.venues)

    def sum_of_others(self, x: Float[Array, " agents"], *, wide: bool = True) -> Float[Array, " agents"]:
        """For each agent, the sum over everybody *else* in the venue. `wide`: as of `sum`.

        Leaving the agent out does nothing to a simulation in which nobody is both source and target, but its
        derivative would otherwise let agents infect themselves: most of the bias of straight-through gradients.
        """
        member = self.venue_of < self.n_venues
        return self.spread(self.sum(x, wide=wide)) - jnp.where(member, x, jnp.zeros_like(x))

    def mean_of_others(self, x: Float[Array, " agents"]) -> Float[Array, " agents"]:
        """`sum_of_others` over the number of others; zero for an agent who is alone.

        **Raises:** `ValueError` for an incidence that was `laid_out`.
        """
        if self.sizes is None:
            raise ValueError("An Incidence that was laid out has no sizes, and so no means; divide by members.")
        others = self.spread(jnp.maximum(self.sizes - 1, 1).astype(x.dtype))
        return self.sum_of_others(x) / jnp.maximum(others, 1)


def _counts(index: np.ndarray, n_venues: int) -> np.ndarray:
    return np.bincount(index[index >= 0], minlength=n_venues)
