"""Priors over named parameters, and the coordinates in which posteriors are fitted.

Every parameter has a coordinate `z` on the whole real line. Where the prior has an inverse distribution function `F^-1`
the coordinate is `theta = F^-1(Phi(z))`, with Phi the standard normal distribution function: in `z` the prior is a
standard normal, whatever it was, and nothing is ever inverted numerically to evaluate it. Otherwise it is numpyro's
bijection onto the support.
"""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions.transforms import ExpTransform, Transform

from calibrant._problem import Problem

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractClassVar, AbstractVar


class AbstractCoordinate(eqx.Module):
    """The map between one parameter and its unconstrained coordinate, both of any shape."""

    prior: AbstractVar[dist.Distribution]
    #: Whether the prior is a standard normal in the coordinate.
    is_standard: AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the coordinate."""

    @abc.abstractmethod
    def constrain(self, z: Array) -> Array:
        """Coordinate to parameter."""

    @abc.abstractmethod
    def unconstrain(self, theta: Array) -> Array:
        """Parameter to coordinate."""

    @abc.abstractmethod
    def log_base(self, z: Array) -> Float[Array, ""]:
        """Log-density of the prior in the coordinate."""


class QuantileCoordinate(AbstractCoordinate):
    """`theta = F^-1(Phi(z))`: in `z` the prior is a standard normal."""

    prior: dist.Distribution

    is_standard = True

    @property
    def shape(self):
        return tuple(self.prior.batch_shape)

    def constrain(self, z):
        affine = _normal_within(self.prior)
        if affine is not None:  # closed form, which keeps the tails that Phi rounds to 1
            loc, scale, exponentiate = affine
            y = loc + scale * z
            return jnp.exp(y) if exponentiate else y
        eps = jnp.finfo(jnp.result_type(z, float)).epsneg
        return jnp.asarray(_elementwise(self.prior).icdf(jnp.clip(norm.cdf(z), eps, 1 - eps)))

    def unconstrain(self, theta):
        affine = _normal_within(self.prior)
        if affine is not None:
            loc, scale, exponentiate = affine
            return ((jnp.log(theta) if exponentiate else theta) - loc) / scale
        eps = jnp.finfo(jnp.result_type(theta, float)).epsneg
        return jax.scipy.special.ndtri(jnp.clip(_elementwise(self.prior).cdf(theta), eps, 1 - eps))

    def log_base(self, z):
        return jnp.sum(norm.logpdf(z))


class BijectionCoordinate(AbstractCoordinate):
    """numpyro's bijection from the real line (or space) to the support of the prior."""

    prior: dist.Distribution

    is_standard = False

    @property
    def _bijection(self) -> Transform:
        return dist.biject_to(self.prior.support)

    @property
    def shape(self):
        return tuple(self._bijection.inverse_shape(self.prior.shape()))

    def constrain(self, z):
        return jnp.asarray(self._bijection(z))

    def unconstrain(self, theta):
        return jnp.asarray(self._bijection.inv(theta))

    def log_base(self, z):
        theta = self._bijection(z)
        log_prob = jnp.sum(self.prior.log_prob(theta))
        return log_prob + jnp.sum(self._bijection.log_abs_det_jacobian(z, theta))


def _elementwise(prior: dist.Distribution) -> dist.Distribution:
    """The distribution of one entry, where `expand` made many."""
    return prior.base_dist if isinstance(prior, dist.ExpandedDistribution) else prior


def _normal_within(prior: dist.Distribution) -> tuple[Array, Array, bool] | None:
    """Location and scale of a normal prior, and whether it is that of the logarithm."""
    prior = _elementwise(prior)
    if isinstance(prior, dist.Normal):
        return jnp.asarray(prior.loc), jnp.asarray(prior.scale), False
    if (
        isinstance(prior, dist.TransformedDistribution)
        and isinstance(prior.base_dist, dist.Normal)
        and len(prior.transforms) == 1
        and isinstance(prior.transforms[0], ExpTransform)
    ):
        return jnp.asarray(prior.base_dist.loc), jnp.asarray(prior.base_dist.scale), True
    return None


def _coordinate(name: str, prior: Any) -> AbstractCoordinate:
    if not isinstance(prior, dist.Distribution):
        raise ValueError(f"The prior of '{name}' is no numpyro distribution but {type(prior).__name__}.")
    if prior.is_discrete:
        raise ValueError(f"The prior of '{name}' is discrete; only continuous parameters have gradients.")
    quantile = QuantileCoordinate(prior)
    if len(prior.event_shape) == 0:
        if _normal_within(prior) is not None:
            return quantile
        # Trust an inverse distribution function that can be evaluated, differentiated and inverted.
        try:
            z = jnp.full(prior.batch_shape, 0.3)
            theta, slope = jax.jvp(quantile.constrain, (z,), (jnp.ones_like(z),))
            back = quantile.unconstrain(theta)
            if bool(jnp.all(jnp.isfinite(slope) & (slope > 0) & (jnp.abs(back - z) < 1e-3))):
                return quantile
        except (NotImplementedError, ImportError, TypeError, AttributeError, ValueError):
            pass
    return BijectionCoordinate(prior)


class Prior(eqx.Module):
    """Independent priors over named free parameters.

    **Arguments:** `priors`, name -> numpyro distribution. A parameter that is an array takes a distribution of its
    shape, independent (`dist.Uniform(0, 1).expand([3])`) or joint (`dist.Dirichlet(...)`).

    **Raises:** `ValueError` for an empty mapping and for what is no continuous numpyro distribution.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    coordinates: tuple[AbstractCoordinate, ...]

    def __init__(self, priors: Mapping[str, dist.Distribution]):
        if not priors:
            raise ValueError("A prior needs at least one free parameter.")
        self.names = tuple(priors)
        self.coordinates = tuple(_coordinate(name, prior) for name, prior in priors.items())

    @classmethod
    def of(
        cls,
        problem: Problem,
        priors: Mapping[str, dist.Distribution] | None = None,
        free: "tuple[str, ...] | list[str] | None" = None,
    ) -> "Prior":
        """The prior of a problem: the model's own, with `priors` in their place where given.

        **Arguments:** `free`, names of the parameters to calibrate; by default all that have a prior.

        **Raises:** `ValueError` for unknown names, for parameters without a prior and for priors of the wrong shape.
        """
        if isinstance(free, str):
            raise ValueError(f"`free` takes a list of names, got the string '{free}'; write free=['{free}'].")
        described = problem.model.Params.describe()
        given = dict(priors or {})
        known = (*described, *problem.loss.parameters)
        for name in (*given, *(free or ())):
            if name not in known:
                raise ValueError(f"There is no parameter '{name}'; the model and the loss have {', '.join(known)}.")
        own = {name: info.prior for name, info in described.items() if info.prior is not None}
        merged = {**own, **given}
        chosen = [name for name in known if name in merged] if free is None else list(free)
        for name in chosen:
            if name not in merged:
                raise ValueError(f"The parameter '{name}' has no prior; give one in `priors`.")
        prior = cls({name: merged[name] for name in chosen})
        prior.check(problem)
        return prior

    def check(self, problem: Problem) -> None:
        """Refuse, with a `ValueError`, a problem whose parameters are not those of this prior."""
        known = (*problem.parameter_names, *problem.loss.parameters)
        for name, prior in self.distributions.items():
            if name not in known:
                raise ValueError(f"There is no parameter '{name}'; the model and the loss have {', '.join(known)}.")
            if name in problem.parameter_names:
                shape, wanted = tuple(prior.shape()), getattr(problem.params, name).shape
                if shape != wanted:
                    raise ValueError(f"The prior of '{name}' has shape {shape}, but the parameter has {wanted}.")
        for name in problem.loss.parameters:
            if name not in self.names:
                raise ValueError(f"The loss's parameter '{name}' has no prior; it has to be free, so give it one.")

    @property
    def distributions(self) -> dict[str, dist.Distribution]:
        """Name -> prior distribution."""
        return {name: c.prior for name, c in zip(self.names, self.coordinates, strict=True)}

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(int(np.prod(c.shape)) for c in self.coordinates)

    @property
    def is_standard(self) -> bool:
        """Whether the prior is a standard normal in the coordinates."""
        return all(c.is_standard for c in self.coordinates)

    def _split(self, z: Float[Array, " dim"]) -> list[Array]:
        sizes = [int(np.prod(c.shape)) for c in self.coordinates]
        ends = np.cumsum(sizes)
        return [
            z[end - size : end].reshape(c.shape) for c, size, end in zip(self.coordinates, sizes, ends, strict=True)
        ]

    def constrain(self, z: Float[Array, " dim"]) -> dict[str, Array]:
        """One point: coordinates to named values."""
        parts = self._split(z)
        return {n: c.constrain(part) for n, c, part in zip(self.names, self.coordinates, parts, strict=True)}

    def unconstrain(self, values: Mapping[str, Array]) -> Float[Array, " dim"]:
        """One point: named values to coordinates."""
        return jnp.concatenate(
            [c.unconstrain(jnp.asarray(values[n])).ravel() for n, c in zip(self.names, self.coordinates, strict=True)]
        )

    def log_base(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log-density of the prior in the coordinates, at one point."""
        parts = self._split(z)
        return sum((c.log_base(part) for c, part in zip(self.coordinates, parts, strict=True)), jnp.zeros(()))

    def log_prob(self, values: Mapping[str, Array]) -> Float[Array, ""]:
        """Log-density of the prior, at one point."""
        return sum((jnp.sum(d.log_prob(values[n])) for n, d in self.distributions.items()), jnp.zeros(()))

    def sample(self, key: PRNGKeyArray, n: int) -> dict[str, Array]:
        """`n` draws: name -> array of shape (n, *shape)."""
        keys = jax.random.split(key, len(self.names))
        pairs = zip(keys, self.distributions.items(), strict=True)
        return {name: jnp.asarray(d.sample(k, (n,))) for k, (name, d) in pairs}

    def scalar_names(self) -> list[str]:
        """Names of the scalar entries: `beta`, `rates[0]`, `rates[1]`, ..."""
        out = []
        for name, d in self.distributions.items():
            shape = tuple(d.shape())
            out += [name + "".join(f"[{i}]" for i in index) for index in np.ndindex(shape)]
        return out
