"""Small systems of linear equations, many side by side.

Not by LAPACK: its kernels wait for one another in the thread pool of XLA on the CPU when many run at once (seen with
JAX 0.10: a program that never ends, at 0% of the processor), and for systems of ten unknowns elimination is as fast.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def solve_positive(a: Float[Array, "k k"], b: Float[Array, "k n"]) -> Float[Array, "k n"]:
    """`a^-1 b` of a symmetric positive definite matrix, by Gauss-Jordan elimination, which needs no pivots there."""
    k = a.shape[0]

    def eliminate(i, ab):
        row = ab[i] / ab[i, i]
        column = ab[:, i].at[i].set(0)
        return (ab - column[:, None] * row).at[i].set(row)

    return jax.lax.fori_loop(0, k, eliminate, jnp.concatenate([a, b], axis=1))[:, k:]
