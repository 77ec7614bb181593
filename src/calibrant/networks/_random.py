"""Random networks."""

import numpy as np

from calibrant.networks._incidence import Incidence


def random_groups(n_agents: int, size: int, *, seed: int = 0, contiguous: bool = False) -> Incidence:
    """Agents in groups of `size` (the last may be smaller), at random or, with `contiguous=True`, in order.

    **Raises:** `ValueError` if there are no agents or groups would be empty.
    """
    if n_agents < 1 or size < 1:
        raise ValueError(f"random_groups needs at least one agent and groups of at least one, got {n_agents}, {size}.")
    groups = np.arange(n_agents) // size
    if not contiguous:
        groups = np.random.default_rng(seed).permutation(groups)
    return Incidence(groups)
