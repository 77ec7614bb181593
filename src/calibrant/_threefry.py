"""Threefry2x32-20, the counter-based generator behind every draw.

Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", SC11. The reference
implementation, Random123, publishes the known answers that the tests check.

It is written in plain `jax.numpy`, so that XLA fuses it into the computation that uses the bits: no array of random
bits ever exists in memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _rotate_left(x: Array, by: int) -> Array:
    return (x << jnp.uint32(by)) | (x >> jnp.uint32(32 - by))


@jax.jit  # traced once for all draws of a shape; XLA inlines it
def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Encrypt a 64-bit counter with a 64-bit key, 20 rounds.

    **Arguments:** `key` and `counter` are pairs of `uint32` arrays that broadcast against each other.

    **Returns:** a pair of `uint32` arrays, 64 bits a counter.
    """
    k0, k1 = key
    schedule = (k0, k1, k0 ^ k1 ^ jnp.uint32(_PARITY))
    x0 = counter[0] + schedule[0]
    x1 = counter[1] + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, rotation) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1


def uniform_from_bits(bits: Array, dtype) -> Array:
    """Map 32 random bits to a float strictly inside (0, 1).

    `(bits + 1/2) / 2^32`: events as rare as 2^-32 still fire, and 0 and 1 never come out (an event of probability 0
    never happens, one of probability 1 always does, and logarithms are finite). In float32 values next to 1 are
    rounded; the largest is `1 - 2^-24`.
    """
    one = jnp.asarray(1.0, dtype)
    below_one = jnp.nextafter(one, jnp.zeros_like(one))
    u = (bits.astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-32, dtype)
    return jnp.minimum(u, below_one)
