"""Negative log-likelihoods of data given a simulation, summed over what was observed.

Exact Bayes? Write `p(y | x)` for the density of the data given one simulation `x`. The mean of `-log p(y | x)` over
simulation noise is *not* `-log p(y | theta) = -log E_x p(y | x)`; it is larger (Jensen), and its generalised posterior
with w = 1 is exact only where the simulation has no noise. `MarginalLikelihood` takes the expectation inside the
logarithm and tends to exact Bayes as the number of replicates grows.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

from calibrant.losses._base import (
    AbstractLoss,
    AbstractPerSimulationLoss,
    masked_sum,
    matched,
    refuse_below,
    require_positive,
)


def _value(given: "float | str | Array", params: Mapping[str, Array], dtype) -> Array:
    return (params[given] if isinstance(given, str) else jnp.asarray(given)).astype(dtype)


def _own(given: "float | str | Array") -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else ()


class GaussianLogLikelihood(AbstractPerSimulationLoss):
    """`y ~ Normal(x, scale^2)`. `scale` is a number, an array, or the name of a parameter."""

    scale: "float | str | Array"

    def __check_init__(self):
        require_positive(self.scale, "The scale of GaussianLogLikelihood")

    def one(self, simulation, data, params):
        x, y, seen = matched(simulation, data, "GaussianLogLikelihood")
        scale = _value(self.scale, params, x.dtype)
        nll = 0.5 * ((x - y) / scale) ** 2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi).astype(x.dtype)
        return masked_sum(nll, seen)

    def observe(self, key, simulation, params):
        def one(x):
            return x + _value(self.scale, params, x.dtype) * jax.random.normal(key, x.shape, x.dtype)

        return jax.tree.map(one, simulation)

    @property
    def parameters(self):
        return _own(self.scale)


class PoissonLogLikelihood(AbstractPerSimulationLoss):
    """`y ~ Poisson(max(x, floor))`: a simulation that says 0 where something was observed is not impossible."""

    floor: float = 0.1

    def __check_init__(self):
        require_positive(self.floor, "The floor of PoissonLogLikelihood")

    def check(self, data):
        refuse_below(data, 0.0, "PoissonLogLikelihood")

    def one(self, simulation, data, params):
        x, y, seen = matched(simulation, data, "PoissonLogLikelihood")
        rate = jnp.maximum(x, self.floor)
        return masked_sum(rate - y * jnp.log(rate) + gammaln(y + 1), seen)

    def observe(self, key, simulation, params):
        return jax.tree.map(lambda x: jax.random.poisson(key, jnp.maximum(x, self.floor)).astype(x.dtype), simulation)


class NegativeBinomialLogLikelihood(AbstractPerSimulationLoss):
    """`y` negative binomial of mean `m = max(x, floor)` and variance `m + m^2 / concentration`.

    `concentration` is a number or the name of a parameter; large means Poisson.
    """

    concentration: "float | str | Array"
    floor: float = 0.1

    def __check_init__(self):
        require_positive(self.concentration, "The concentration of NegativeBinomialLogLikelihood")
        require_positive(self.floor, "The floor of NegativeBinomialLogLikelihood")

    def check(self, data):
        refuse_below(data, 0.0, "NegativeBinomialLogLikelihood")

    def one(self, simulation, data, params):
        x, y, seen = matched(simulation, data, "NegativeBinomialLogLikelihood")
        k = _value(self.concentration, params, x.dtype)
        mean = jnp.maximum(x, self.floor)
        log_prob = (
            gammaln(y + k)
            - gammaln(k)
            - gammaln(y + 1)
            - k * jnp.log1p(mean / k)
            + y * (jnp.log(mean) - jnp.log(mean + k))
        )
        return -masked_sum(log_prob, seen)

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

    def check(self, data):
        self.loss.check(data)

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
