"""Central differences in every parameter at once, with common random numbers.

    g_i = (L(theta + step e_i) - L(theta - step e_i)) / (2 step),        all from one seed

The derivative of the loss averaged over `step` to either side, in expectation: what a jump of a discrete draw
contributes is in it, with an error of order step^2. Common random numbers make the two sides alike in all but the
parameter (Glasserman and Yao 1992, Management Science 38: 884-908).
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, UInt32

from calibrant._sampling import Hard
from calibrant.estimators._base import AbstractEstimator


class FiniteDifferences(AbstractEstimator):
    """Two simulations a parameter and one at the centre; no derivative is taken.

    With d numbers to differentiate a value costs `2 d + 1` runs. Their noise falls with `step`, and a posterior
    narrower than `step` is not resolved. Horizon and mode have no effect.

    **Arguments:** `step`. In `GVI` it is in coordinates of the prior: its standard deviations, where the prior has a
    quantile function. In `expect` it is in units of `scale`, a number or numbers for each parameter by name (1 where it
    has none).
    """

    step: float = eqx.field(default=0.2, static=True)
    scale: Mapping[str, float | Array] | None = None

    unbiased = False
    separable = False

    def __check_init__(self):
        if not (isinstance(self.step, (int, float)) and 0 < self.step < float("inf")):
            raise ValueError(f"FiniteDifferences needs a `step` above 0, got {self.step}.")

    def runs(self, problem, dim):
        return self.points(dim)

    def points(self, dim: int) -> int:
        """Points of the stencil."""
        return 2 * dim + 1

    def stencil(
        self, z: Float[Array, "n dim"], seeds: UInt32[Array, "n replicates 2"]
    ) -> tuple[Float[Array, "n_runs dim"], UInt32[Array, "n_runs replicates 2"]]:
        """Where to simulate: for each of n points itself, a step up each coordinate, a step down each."""
        return _around(z, self.step * jnp.ones_like(z[0])), jnp.repeat(seeds, self.points(z.shape[1]), axis=0)

    def combine(
        self, losses: Float[Array, " n_runs"], finite: Bool[Array, " n_runs"], n: int
    ) -> tuple[Float[Array, " n"], Bool[Array, " n"], Float[Array, "n dim"]]:
        """Losses, whether all is finite, and gradients of the n points of a stencil."""
        centre, g = _differences(losses.reshape(n, -1), self.step)
        return centre, jnp.all(finite.reshape(n, -1), axis=1), g

    def losses(self, problem, run, values, seeds):
        values = dict(values)
        unknown = set(self.scale or {}) - set(values)
        if unknown:
            raise ValueError(
                f"FiniteDifferences has a scale for {sorted(unknown)}, but the values are {sorted(values)}."
            )
        flat = jax.vmap(lambda v: ravel_pytree(v)[0])(values)
        unravel = ravel_pytree(jax.tree.map(lambda x: x[0], values))[1]
        ones = {name: jnp.ones_like(x[0]) for name, x in values.items()}
        scale, _ = ravel_pytree({name: one * (self.scale or {}).get(name, 1.0) for name, one in ones.items()})
        points = _around(jax.lax.stop_gradient(flat), self.step * scale)
        at = jax.vmap(unravel)(points)
        trajectories = run(at, jnp.repeat(seeds, self.points(flat.shape[1]), axis=0), Hard())
        each = jax.vmap(problem.evaluate)(trajectories.outputs, at).reshape(flat.shape[0], -1)
        centre, g = _differences(each, self.step * scale)
        at_centre = jax.tree.map(lambda x: x.reshape(*each.shape, *x.shape[1:])[:, 0], trajectories)
        return centre + jnp.sum(g * (flat - jax.lax.stop_gradient(flat)), axis=1), at_centre


def _around(z: Float[Array, "n dim"], step: Float[Array, " dim"]) -> Float[Array, "n_runs dim"]:
    steps = jnp.diag(step)
    moves = jnp.concatenate([jnp.zeros_like(steps[:1]), steps, -steps])
    return (z[:, None] + moves).reshape(-1, z.shape[1])


def _differences(of_point: Float[Array, "n n_points"], step: "float | Array") -> tuple[Array, Array]:
    dim = of_point.shape[1] // 2
    return of_point[:, 0], (of_point[:, 1 : dim + 1] - of_point[:, dim + 1 :]) / (2 * step)
