"""Gradients from losses alone, for simulators without a derivative, or with one that leads astray.

They belong to the method, not to `calibrant.estimators`: they move coordinates of the posterior, or need its density.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32


class FlowScore(eqx.Module):
    """The score of the flow: `d/dphi` from losses alone, for simulators that are black boxes.

    `d/dphi E[L] = E[(L - B) d log q_phi(theta) / dphi]` at fixed theta; the baseline `B` of a simulation is the mean
    loss of the others of the update (Ranganath, Gerrish, Blei 2014, arXiv 1401.0118; Kool et al. 2019). Unbiased
    whatever the simulator, and noisy: see the docs for what it costs.
    """


class FiniteDifferences(eqx.Module):
    """Central differences in every coordinate of the prior, with common random numbers.

        g_i = (L(z + step e_i) - L(z - step e_i)) / (2 step),        all from one seed

    The derivative of the loss averaged over `step` to either side, in expectation: what a jump of a discrete draw
    contributes is in it. Two simulations a coordinate and one at the centre, for each parameter value: with d
    coordinates an update takes `simulations (2 d + 1)` runs. Their noise falls with `step`, and a posterior narrower
    than `step` is not resolved (Glasserman and Yao 1992, Management Science 38: 884-908, for the common random
    numbers).

    **Arguments:** `step`, in coordinates: prior standard deviations where the prior has a quantile function.
    """

    step: float = 0.2

    def __check_init__(self):
        if not (isinstance(self.step, (int, float)) and 0 < self.step < float("inf")):
            raise ValueError(f"FiniteDifferences needs a `step` above 0, got {self.step}.")

    def points(self, dim: int) -> int:
        """Points of the stencil."""
        return 2 * dim + 1

    def stencil(
        self, z: Float[Array, "n dim"], seeds: UInt32[Array, "n replicates 2"]
    ) -> tuple[Float[Array, "n_runs dim"], UInt32[Array, "n_runs replicates 2"]]:
        """Where to simulate: for each of n points itself, a step up each coordinate, a step down each."""
        step = self.step * jnp.eye(z.shape[1], dtype=z.dtype)
        moves = jnp.concatenate([jnp.zeros_like(step[:1]), step, -step])
        points = (z[:, None] + moves).reshape(-1, z.shape[1])
        return points, jnp.repeat(seeds, moves.shape[0], axis=0)

    def combine(
        self, losses: Float[Array, " n_runs"], finite: Bool[Array, " n_runs"], n: int
    ) -> tuple[Float[Array, " n"], Bool[Array, " n"], Float[Array, "n dim"]]:
        """Losses, whether all is finite, and gradients of the n points of a stencil."""
        of_point = losses.reshape(n, -1)
        dim = of_point.shape[1] // 2
        g = (of_point[:, 1 : dim + 1] - of_point[:, dim + 1 :]) / (2 * self.step)
        return of_point[:, 0], jnp.all(finite.reshape(n, -1), axis=1), g
