"""The interface of losses, and what they share."""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractLoss(eqx.Module):
    """How far simulations are from data.

    Called as `loss(simulations, data, params)`: `simulations` have a leading axis of replicates (same parameters,
    different seeds), `data` one simulation's shape, with NaN where nothing was observed; `params` maps names of the
    model's and the loss's own parameters to values.
    """

    #: Whether the loss is a mean over replicates, each taken alone, or looks at the ensemble.
    per_simulation: AbstractClassVar[bool]
    #: The fewest replicates it is defined for.
    min_replicates: AbstractClassVar[int]
    #: Whether it is a negative log-likelihood, normalised: `exp(-loss)` is a density of the data.
    is_likelihood = False

    @abc.abstractmethod
    def __call__(self, simulations: Any, data: Any, params: Mapping[str, Array]) -> Float[Array, ""]:
        """The loss, a scalar; for a per-simulation loss the mean over replicates."""

    def terms(self, simulation: Any, data: Any, params: Mapping[str, Array]) -> Float[Array, " times"] | None:
        """The loss of one simulation as a sum of terms, the t-th of which depends on outputs up to time t.

        `None` where it is no such sum.
        """
        del simulation, data, params
        return None

    def check(self, data: Any) -> None:
        """Refuse, with a `ValueError`, data that have no loss whatever is simulated, such as negative counts."""
        del data

    def with_data(self, data: Any) -> "AbstractLoss":
        """The loss as it would have been built for other data: itself, unless it holds things computed from data.

        **Raises:** `ValueError` where it cannot be rebuilt.
        """
        del data
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the loss's own parameters, such as a dispersion."""
        return ()

    def observe(self, key: PRNGKeyArray, simulation: Any, params: Mapping[str, Array]) -> Any:
        """Data drawn given one simulation, for predictive checks: itself, unless a likelihood has noise."""
        del key, params
        return simulation


class AbstractPerSimulationLoss(AbstractLoss):
    """A loss of one simulation at a time."""

    per_simulation = True
    min_replicates = 1

    @abc.abstractmethod
    def one(self, simulation: Any, data: Any, params: Mapping[str, Array]) -> Float[Array, ""]:
        """The loss of one simulation."""

    def __call__(self, simulations, data, params):
        return jnp.mean(jax.vmap(lambda x: self.one(x, data, params))(simulations))


class AbstractPointwiseLoss(AbstractPerSimulationLoss):
    """A loss of each observation, summed or averaged over all that were made."""

    #: The mean over observations, or their sum.
    averaged: AbstractClassVar[bool]

    @abc.abstractmethod
    def each(self, x: Array, y: Array, params: Mapping[str, Array]) -> Array:
        """The loss of every observation; `y` is 0 where nothing was observed."""

    def one(self, simulation, data, params):
        x, y, seen = matched(simulation, data, type(self).__name__)
        return (masked_mean if self.averaged else masked_sum)(self.each(x, y, params), seen)

    def terms(self, simulation, data, params):
        x, y, seen = matched(simulation, data, type(self).__name__)
        each = jnp.where(seen, self.each(x, y, params), 0)
        if self.averaged:
            each = each / jnp.maximum(jnp.sum(seen), 1).astype(each.dtype)
        return jnp.sum(each.reshape(each.shape[0], -1), axis=1)


class CustomLoss(AbstractLoss):
    """Any function `(simulations, data, params) -> scalar`, as an ensemble loss.

    **Arguments:** `fn`; `parameters`, names of parameters of its own; `min_replicates`; `per_simulation`, whether it is
    a mean over replicates, each taken alone, as some gradient estimators need it.
    """

    fn: Callable[[Any, Any, Mapping[str, Array]], Array]
    _parameters: tuple[str, ...] = eqx.field(static=True)
    _min_replicates: int = eqx.field(static=True)
    _per_simulation: bool = eqx.field(static=True)

    per_simulation = property(lambda self: self._per_simulation)  # pyright: ignore[reportAssignmentType]
    min_replicates = property(lambda self: self._min_replicates)  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        fn: Callable,
        *,
        parameters: tuple[str, ...] = (),
        min_replicates: int = 1,
        per_simulation: bool = False,
    ):
        self.fn = fn
        self._parameters = tuple(parameters)
        self._min_replicates = min_replicates
        self._per_simulation = per_simulation

    def __call__(self, simulations, data, params):
        return jnp.asarray(self.fn(simulations, data, params))

    @property
    def parameters(self):
        return self._parameters


def as_loss(loss: "AbstractLoss | Callable") -> AbstractLoss:
    """A loss object, from one or from a function `(simulations, data, params) -> scalar`."""
    return loss if isinstance(loss, AbstractLoss) else CustomLoss(loss)


def matched(simulation: Any, data: Any, name: str) -> tuple[Array, Array, Bool[Array, "..."]]:
    """Simulation, data with blanks filled, and where data are not blank.

    **Raises:** `ValueError` if either is not one array or their shapes differ.
    """
    simulation, data = _one_array(simulation, name, "simulation"), _one_array(data, name, "data")
    if simulation.shape != data.shape:
        raise ValueError(
            f"{name} compares arrays of equal shape, but the simulation has {simulation.shape} "
            f"and the data have {data.shape}."
        )
    seen = jnp.isfinite(data)
    return simulation, jnp.where(seen, data, 0).astype(simulation.dtype), seen


def _one_array(tree: PyTree, name: str, what: str) -> Array:
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1:
        raise ValueError(
            f"{name} takes one array, but the {what} has {len(leaves)}; "
            "use losses.Streams({...}) to give each stream its own loss."
        )
    return jnp.asarray(leaves[0])


def refuse_below(data: Any, bound: float, name: str) -> None:
    """Refuse data below a bound.

    **Raises:** `ValueError`.
    """
    for leaf in jax.tree.leaves(data):
        lowest = float(jnp.nanmin(jnp.asarray(leaf, dtype=float), initial=jnp.inf))
        if lowest < bound:
            raise ValueError(f"{name} is for data of at least {bound:g}, but one value is {lowest:g}.")


def refuse_above(data: Any, bound: float, name: str) -> None:
    """Refuse data above a bound.

    **Raises:** `ValueError`.
    """
    for leaf in jax.tree.leaves(data):
        highest = float(jnp.nanmax(jnp.asarray(leaf, dtype=float), initial=-jnp.inf))
        if highest > bound:
            raise ValueError(f"{name} is for data of at most {bound:g}, but one value is {highest:g}.")


_LARGEST = 3e38  # of float32


def require_positive(value: Any, what: str) -> None:
    """Refuse a number that is not positive; names of parameters and arrays pass.

    **Raises:** `ValueError`.
    """
    if isinstance(value, (int, float)) and not 0 < value <= _LARGEST:
        raise ValueError(f"{what} is a positive number or the name of a parameter, got {value}.")


def masked_mean(x: Array, seen: Array) -> Array:
    """Mean over what was observed."""
    return jnp.sum(jnp.where(seen, x, 0)) / jnp.maximum(jnp.sum(seen), 1).astype(x.dtype)


def masked_sum(x: Array, seen: Array) -> Array:
    """Sum over what was observed."""
    return jnp.sum(jnp.where(seen, x, 0))
