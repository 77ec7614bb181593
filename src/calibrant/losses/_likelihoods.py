"""Negative log-likelihoods of data given a simulation, summed over what was observed.

Exact Bayes? Write `p(y | x)` for the density of the data given one simulation `x`. The mean of `-log p(y | x)` over
simulation noise is *not* `-log p(y | theta) = -log E_x p(y | x)`; it is larger (Jensen), and its generalised posterior
with w = 1 is exact only where the simulation has no noise. `MarginalLikelihood` takes the expectation inside the
logarithm and tends to exact Bayes as the number of replicates grows.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

from calibrant.losses._base import (
    AbstractLoss,
    AbstractPointwiseLoss,
    refuse_above,
    refuse_below,
    require_positive,
)


def _value(given: "float | str | Array", params: Mapping[str, Array], dtype) -> Array:
    return (params[given] if isinstance(given, str) else jnp.asarray(given)).astype(dtype)


def _own(given: "float | str | Array") -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else ()


class GaussianLogLikelihood(AbstractPointwiseLoss):
    """`y ~ Normal(x, scale^2)`. `scale` is a number, an array, or the name of a parameter."""

    scale: "float | str | Array"

    averaged = False
    is_likelihood = True

    def __check_init__(self):
        require_positive(self.scale, "The scale of GaussianLogLikelihood")

    def each(self, x, y, params):
        scale = _value(self.scale, params, x.dtype)
        return 0.5 * ((x - y) / scale) ** 2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi).astype(x.dtype)

    def observe(self, key, simulation, params):
        def one(x):
            return x + _value(self.scale, params, x.dtype) * jax.random.normal(key, x.shape, x.dtype)

        return jax.tree.map(one, simulation)

    @property
    def parameters(self):
        return _own(self.scale)


class PoissonLogLikelihood(AbstractPointwiseLoss):
    """`y ~ Poisson(max(x, floor))`: a simulation that says 0 where something was observed is not impossible."""

    floor: float = 0.1

    averaged = False
    is_likelihood = True

    def __check_init__(self):
        require_positive(self.floor, "The floor of PoissonLogLikelihood")

    def check(self, data):
        refuse_below(data, 0.0, "PoissonLogLikelihood")

    def each(self, x, y, params):
        rate = jnp.maximum(x, self.floor)
        return rate - y * jnp.log(rate) + gammaln(y + 1)

    def observe(self, key, simulation, params):
        return jax.tree.map(lambda x: jax.random.poisson(key, jnp.maximum(x, self.floor)).astype(x.dtype), simulation)


class NegativeBinomialLogLikelihood(AbstractPointwiseLoss):
    """`y` negative binomial of mean `m = max(x, floor)` and variance `m + m^2 / concentration`.

    `concentration` is a number or the name of a parameter; large means Poisson.
    """

    concentration: "float | str | Array"
    floor: float = 0.1

    averaged = False
    is_likelihood = True

    def __check_init__(self):
        require_positive(self.concentration, "The concentration of NegativeBinomialLogLikelihood")
        require_positive(self.floor, "The floor of NegativeBinomialLogLikelihood")

    def check(self, data):
        refuse_below(data, 0.0, "NegativeBinomialLogLikelihood")

    def each(self, x, y, params):
        k = _value(self.concentration, params, x.dtype)
        mean = jnp.maximum(x, self.floor)
        log_prob = (
            gammaln(y + k)
            - gammaln(k)
            - gammaln(y + 1)
            - k * jnp.log1p(mean / k)
            + y * (jnp.log(mean) - jnp.log(mean + k))
        )
        return -log_prob

    def observe(self, key, simulation, params):
        first, second = jax.random.split(key)

        def one(x):
            k = _value(self.concentration, params, x.dtype)
            rate = jnp.maximum(x, self.floor) * jax.random.gamma(first, k, x.shape, x.dtype) / k
            return jax.random.poisson(second, rate).astype(x.dtype)

        return jax.tree.map(one, simulation)

    @property
    def parameters(self):
        return _own(self.concentration)


class BinomialLogLikelihood(AbstractPointwiseLoss):
    """Of `tested` people the share `y` was positive: `tested y ~ Binomial(tested, p)`, of a simulated share `x`,

        p = sensitivity x + (1 - specificity) (1 - x)

    (Rogan and Gladen 1978, American Journal of Epidemiology 107: 71). `tested` has the shape of the data, or covers
    more times than they do; sensitivity and specificity are numbers or names of parameters. Noise for predictive checks
    is that of the number tested, and of the median number where nobody was. `p` is kept from 0 and 1 by `floor`.
    """

    tested: Array
    sensitivity: "float | str | Array" = 1.0
    specificity: "float | str | Array" = 1.0
    floor: float = 1e-6

    averaged = False
    is_likelihood = True

    def __init__(
        self,
        tested: Any,
        sensitivity: "float | str | Array" = 1.0,
        specificity: "float | str | Array" = 1.0,
        floor: float = 1e-6,
    ):
        self.tested = jnp.asarray(tested, dtype=float)
        self.sensitivity, self.specificity, self.floor = sensitivity, specificity, floor

    def __check_init__(self):
        for name in ("sensitivity", "specificity"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 < value <= 1:
                raise ValueError(f"The {name} of BinomialLogLikelihood is above 0 and at most 1, got {value}.")
        if not bool(jnp.all(self.tested >= 0)) or not bool(jnp.any(self.tested > 0)):
            raise ValueError("BinomialLogLikelihood needs numbers tested of at least 0, and one above.")

    def check(self, data):
        refuse_below(data, 0.0, "BinomialLogLikelihood")
        refuse_above(data, 1.0, "BinomialLogLikelihood")

    def _positive(self, x, params):
        sensitivity = _value(self.sensitivity, params, x.dtype)
        specificity = _value(self.specificity, params, x.dtype)
        p = sensitivity * x + (1 - specificity) * (1 - x)
        return jnp.clip(p, self.floor, 1 - self.floor)

    def _number(self, x):
        if self.tested.shape[0] < x.shape[0]:
            raise ValueError(f"BinomialLogLikelihood has {self.tested.shape[0]} numbers tested for {x.shape[0]} times.")
        return self.tested[: x.shape[0]].astype(x.dtype)

    def each(self, x, y, params):
        n, p = self._number(x), self._positive(x, params)
        k = n * y
        chosen = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        return -(chosen + k * jnp.log(p) + (n - k) * jnp.log1p(-p))

    def observe(self, key, simulation, params):
        typical = jnp.nanmedian(jnp.where(self.tested > 0, self.tested, jnp.nan))

        def one(x):
            n = self._number(x)
            n = jnp.where(n > 0, n, jnp.ceil(typical).astype(x.dtype))
            return jax.random.binomial(key, n, self._positive(x, params), dtype=x.dtype) / n

        return jax.tree.map(one, simulation)

    @property
    def parameters(self):
        return tuple(dict.fromkeys((*_own(self.sensitivity), *_own(self.specificity))))


class MarginalLikelihood(AbstractLoss):
    """`-log mean_r exp(-loss(x_r))`: the likelihood of the data averaged over replicates before its logarithm is taken.

    A consistent estimate of `-log p(y | theta)` as replicates grow (biased upwards at a finite number, like any
    importance-weighted bound: Burda et al. 2016, arXiv 1509.00519), so that w = 1 approaches exact Bayes.
    """

    loss: AbstractLoss

    per_simulation = False
    min_replicates = 1

    def __check_init__(self):
        if not self.loss.per_simulation:
            raise ValueError(f"MarginalLikelihood needs a negative log-likelihood a simulation, got {self.loss}.")

    def __call__(self, simulations, data, params):
        each = jax.vmap(lambda x: self.loss(jax.tree.map(lambda leaf: leaf[None], x), data, params))(simulations)
        return -(jax.scipy.special.logsumexp(-each) - jnp.log(each.shape[0]).astype(each.dtype))

    is_likelihood = property(lambda self: self.loss.is_likelihood)  # pyright: ignore

    def check(self, data):
        self.loss.check(data)

    def with_data(self, data):
        return MarginalLikelihood(self.loss.with_data(data))

    def observe(self, key, simulation, params):
        return self.loss.observe(key, simulation, params)

    @property
    def parameters(self):
        return self.loss.parameters


class Streams(AbstractLoss):
    """A weighted sum of losses, one a named stream of outputs: `Streams({"deaths": ..., "admissions": ...})`.

    Streams of the simulation without a loss are left out. `per_simulation` if all of its losses are.
    """

    losses: dict[str, AbstractLoss]
    weights: dict[str, float] = eqx.field(default_factory=dict, static=True)

    per_simulation = property(lambda self: all(x.per_simulation for x in self.losses.values()))  # pyright: ignore
    min_replicates = property(lambda self: max(x.min_replicates for x in self.losses.values()))  # pyright: ignore

    @property
    def is_likelihood(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the streams together: all of them are, and each counts once (or not at all)."""
        weights = [self.weights.get(name, 1.0) for name in self.losses]
        counted = [x for x, weight in zip(self.losses.values(), weights, strict=True) if weight != 0]
        return bool(counted) and all(x.is_likelihood for x in counted) and set(weights) <= {0.0, 1.0}

    def with_data(self, data):
        return Streams({name: loss.with_data(data[name]) for name, loss in self.losses.items()}, self.weights)

    def __check_init__(self):
        if not self.losses:
            raise ValueError("Streams needs at least one loss.")
        unknown = set(self.weights) - set(self.losses)
        if unknown:
            raise ValueError(f"Streams has weights for {sorted(unknown)}, which have no loss.")

    def __call__(self, simulations, data, params):
        for what, tree in (("simulation", simulations), ("data", data)):
            if not isinstance(tree, Mapping):
                raise ValueError(f"Streams needs {what} as a mapping of named streams, got {type(tree).__name__}.")
            missing = [name for name in self.losses if name not in tree]
            if missing:
                raise ValueError(f"Streams has a loss for {', '.join(missing)}, but the {what} has {sorted(tree)}.")
        terms = [
            self.weights.get(name, 1.0) * loss(simulations[name], data[name], params)
            for name, loss in self.losses.items()
        ]
        return sum(terms[1:], terms[0])

    def terms(self, simulation, data, params):
        weighted = []
        for name, loss in self.losses.items():
            of_one = loss.terms(simulation[name], data[name], params)
            if of_one is None or (weighted and weighted[0].shape != of_one.shape):
                return None
            weighted.append(self.weights.get(name, 1.0) * of_one)
        return sum(weighted[1:], weighted[0])

    def check(self, data):
        for name, loss in self.losses.items():
            if isinstance(data, Mapping) and name in data:
                try:
                    loss.check(data[name])
                except ValueError as error:
                    raise ValueError(f"'{name}': {error}") from error

    def observe(self, key, simulation, params):
        keys = jax.random.split(key, len(self.losses))
        drawn = {
            name: loss.observe(k, simulation[name], params)
            for k, (name, loss) in zip(keys, self.losses.items(), strict=True)
        }
        return {**simulation, **drawn}

    @property
    def parameters(self):
        return tuple(dict.fromkeys(name for loss in self.losses.values() for name in loss.parameters))
