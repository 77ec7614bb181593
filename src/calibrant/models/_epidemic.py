"""What the bundled epidemic models share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calibrant._randomness import Randomness
from calibrant.networks import Incidence


def force_of_infection(
    layers: tuple[Incidence, ...], shares: Float[Array, " layers"], infectious: Float[Array, " agents"]
) -> Float[Array, " agents"]:
    """Share-weighted mean, over layers of contact, of the infectious fraction among the others of one's group."""
    per_layer = [share * layer.mean_of_others(infectious) for layer, share in zip(layers, shares, strict=True)]
    return jnp.asarray(sum(per_layer[1:], per_layer[0]))


def probability_within(rate: Array, dt: float) -> Array:
    """Probability that an event of constant hazard `rate` (1/day) happens within `dt` days: `1 - exp(-rate dt)`."""
    return -jnp.expm1(-rate * dt)


def first_cases(expected: Float[Array, ""], n_agents: int, rng: Randomness) -> Float[Array, " agents"]:
    """Who is infectious at the start: `expected` agents, chosen at random.

    In a random order the first `floor(expected)` agents are chosen and the next with the remaining probability, so
    the number has mean `expected` and the least possible variance, and a derivative.
    """
    order = jnp.argsort(rng.uniform("first cases: order", (n_agents,), dtype=expected.dtype))
    rank = jnp.zeros((n_agents,), expected.dtype).at[order].set(jnp.arange(n_agents, dtype=expected.dtype))
    return rng.bernoulli(jnp.clip(expected - rank, 0, 1), site="first cases")


def daily(series: Any, per_day: int) -> Any:
    """The last value of each day, from a series with `per_day` steps a day."""
    return jax.tree.map(lambda x: x[per_day - 1 :: per_day], series)
