"""What the bundled epidemic models share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
    the number has mean `expected` and the least possible variance, and a derivative, from the right where it is whole.
    """
    u = rng.uniform("first cases: order", (n_agents,), dtype=expected.dtype)
    first = jnp.floor(jax.lax.stop_gradient(expected))
    before, next_ = _smallest(u, first)
    p = jnp.clip(expected - jnp.where(before, first - 2, first + 2), 0, 1)  # far from where clipping has a corner
    return rng.bernoulli(jnp.where(next_, expected - first, p), site="first cases")


def _smallest(u: Float[Array, " n"], k: Float[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, " n"]]:
    """Which of positive numbers are the `k` smallest, and which one follows; of equal ones the earlier comes first.

    By bisection on their bits, which are ordered as they are: a sort takes more time and many times the memory.
    """
    bits = jax.lax.bitcast_convert_type(u, jnp.uint32 if u.dtype == jnp.float32 else jnp.uint64)
    width = jnp.finfo(u.dtype).bits

    def body(i, bound):  # the largest number with at most k below it, bit by bit
        with_bit = bound | (jnp.ones((), bits.dtype) << (width - 1 - i).astype(bits.dtype))
        return jnp.where(jnp.sum(bits < with_bit, dtype=k.dtype) <= k, with_bit, bound)

    bound = jax.lax.fori_loop(0, width, body, jnp.zeros((), bits.dtype))
    equal = bits == bound
    rank = jnp.sum(bits < bound, dtype=k.dtype) + jnp.cumsum(equal, dtype=k.dtype) - 1
    return (bits < bound) | (equal & (rank < k)), equal & (rank == k)


def daily(series: Any, per_day: int) -> Any:
    """The last value of each day, from a series with `per_day` steps a day."""
    return jax.tree.map(lambda x: x[per_day - 1 :: per_day], series)
