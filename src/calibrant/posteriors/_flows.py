"""Families of posteriors, built from flowjax.

All start as the identity on a standard normal, so a posterior under a quantile prior starts as exactly the prior.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import paramax
from flowjax.bijections import (
    AbstractBijection,
    Affine,
    Chain,
    Coupling,
    Permute,
    RationalQuadraticSpline,
    Scan,
    TriangularAffine,
    Vmap,
)
from flowjax.distributions import AbstractDistribution, StandardNormal, Transformed
from flowjax.flows import masked_autoregressive_flow
from jaxtyping import Array, Float

from calibrant.posteriors._base import AbstractPosterior


def _starting_at_identity(flow: Transformed) -> Transformed:
    """Zero the last layer of every conditioner: flowjax's transformers are then at their initial, identity, values."""

    def last_layer(node):
        return isinstance(node, eqx.nn.MLP)

    def zeroed(node):
        if not last_layer(node):
            return node
        last = node.layers[-1]
        zero = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_inexact_array(x) else x, last)
        return eqx.tree_at(lambda mlp: mlp.layers[-1], node, zero)

    return jax.tree.map(zeroed, flow, is_leaf=last_layer)


def _spline(knots: int, interval: float) -> AbstractBijection:
    return RationalQuadraticSpline(knots=knots, interval=interval)


class MaskedAutoregressiveFlow(AbstractPosterior):
    """Masked autoregressive layers, in the direction that samples in one pass (Papamakarios et al. 2017, arXiv
    1705.07057; Kingma et al. 2016, arXiv 1606.04934).

    **Arguments:** `layers`, `width`, of the conditioners' one hidden layer. `knots` makes the transformers monotone
    rational-quadratic splines of so many knots on [-`interval`, `interval`] (Durkan et al. 2019, arXiv 1906.04032);
    `None` leaves them affine. With one parameter there is nothing to condition on, and the transformer is a spline
    in any case: an affine one could only be a normal distribution.
    """

    layers: int = eqx.field(default=4, static=True)
    width: int = eqx.field(default=32, static=True)
    knots: int | None = eqx.field(default=None, static=True)
    interval: float = eqx.field(default=5.0, static=True)

    def build(self, key, dim) -> AbstractDistribution:
        base = StandardNormal((dim,))
        if dim == 1:
            return _univariate_spline_flow(self.knots or 8, self.interval)
        transformer = None if self.knots is None else _spline(self.knots, self.interval)
        flow = masked_autoregressive_flow(
            key, base_dist=base, transformer=transformer, flow_layers=self.layers, nn_width=self.width, invert=False
        )
        return _starting_at_identity(flow)


class CouplingSplineFlow(AbstractPosterior):
    """Coupling layers with rational-quadratic splines (Durkan et al. 2019, arXiv 1906.04032): fast both ways.

    **Arguments:** `layers`; `width`, of the conditioners' one hidden layer; `knots`; splines act on [-`interval`,
    `interval`] and are the identity outside. Needs two coordinates or more.
    """

    layers: int = eqx.field(default=4, static=True)
    width: int = eqx.field(default=32, static=True)
    knots: int = eqx.field(default=8, static=True)
    interval: float = eqx.field(default=5.0, static=True)

    def __check_init__(self):
        if self.layers < 2:
            raise ValueError(
                f"CouplingSplineFlow needs two layers or more to reach every parameter, got {self.layers}."
            )

    def build(self, key, dim) -> AbstractDistribution:
        if dim < 2:
            raise ValueError(
                "CouplingSplineFlow needs two free parameters or more: with one there is nothing to condition on; "
                "use MaskedAutoregressiveFlow()."
            )
        # Reversed after every layer, so that each two layers transform every coordinate (a random permutation may leave
        # one out of all of them), and shifted by one after every second, so that the halves change.
        backwards = jnp.arange(dim)[::-1]
        orders = jnp.stack([backwards if i % 2 == 0 else jnp.roll(backwards, 1) for i in range(self.layers)])

        def layer(key, order):
            coupling = Coupling(
                key,
                transformer=_spline(self.knots, self.interval),
                untransformed_dim=dim // 2,
                dim=dim,
                nn_width=self.width,
                nn_depth=1,
            )
            return Chain([coupling, Permute(order)])

        layers = Scan(eqx.filter_vmap(layer)(jax.random.split(key, self.layers), orders))
        return _starting_at_identity(Transformed(StandardNormal((dim,)), layers))


class FullRankGaussian(AbstractPosterior):
    """A normal distribution with any mean and covariance, in the coordinates.

    **Arguments:** `scale`, of the start relative to the prior. Below 1 where most draws of the prior are hopeless, and
    would drown what the few good ones say.
    """

    scale: float = 1.0

    def __check_init__(self):
        if not self.scale > 0:
            raise ValueError(f"FullRankGaussian needs a scale above 0, got {self.scale}.")

    def build(self, key, dim) -> AbstractDistribution:
        del key
        return self.around(jnp.zeros(dim), self.scale * jnp.eye(dim))

    @staticmethod
    def around(mean: Float[Array, " dim"], root: Float[Array, "dim dim"]) -> AbstractDistribution:
        """The normal distribution of a mean and a lower-triangular root of its covariance."""
        return Transformed(StandardNormal(mean.shape), TriangularAffine(mean, root))


def _univariate_spline_flow(knots: int, interval: float) -> AbstractDistribution:
    splines = eqx.filter_vmap(lambda: _spline(knots, interval), axis_size=1)()
    return Transformed(
        StandardNormal((1,)),
        Chain([Vmap(splines, in_axes=eqx.if_array(0)), Affine(jnp.zeros(1), jnp.ones(1))]),
    )


def trainable(flow: AbstractDistribution) -> tuple[AbstractDistribution, AbstractDistribution]:
    """A flow split in what is trained and the rest (`eqx.combine` joins them)."""
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))
