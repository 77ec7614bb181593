"""The interface of a model: `init`, `step`, `observe`, and the named parameters they take."""

import abc
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from calibrant._randomness import Randomness

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

State = PyTree[Array]
Outputs = PyTree[Array]


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """What is known of a parameter before any data: its default, prior, units and meaning."""

    default: Any
    prior: dist.Distribution | None
    units: str
    description: str


def _to_float_array(x: Any) -> Any:
    # Tracers, batched arrays and the placeholders JAX puts into PyTrees pass through untouched.
    return jnp.asarray(x, dtype=float) if isinstance(x, (bool, int, float, list, tuple, np.generic, np.ndarray)) else x


def parameter(default: Any, *, prior: dist.Distribution | None = None, units: str = "", description: str = "") -> Any:
    """Declare a field of a `Params` class.

    **Arguments:** `default`, a number or an array of the parameter's shape; `prior`, a numpyro distribution of that
    shape, used where the user gives none (without one, the parameter stays at its value unless the user gives one);
    `units` and `description`, for reports.
    """
    info = ParameterInfo(default, prior, units, description)
    about = {"parameter": info}
    if isinstance(default, (list, np.ndarray, jax.Array)):
        return eqx.field(default_factory=lambda: default, converter=_to_float_array, metadata=about)
    return eqx.field(default=default, converter=_to_float_array, metadata=about)


class Params(eqx.Module):
    """Base of the named containers of a model's parameters: subclass it, one `parameter(...)` a field."""

    @classmethod
    def describe(cls) -> dict[str, ParameterInfo]:
        """Name -> `ParameterInfo`, in order of declaration."""
        return {f.name: f.metadata["parameter"] for f in dataclasses.fields(cls) if "parameter" in f.metadata}

    def replace(self, values: Mapping[str, Any]) -> Any:
        """A copy with the named fields changed.

        **Raises:** `ValueError` for a name that is no field.
        """
        unknown = [name for name in values if name not in self.describe()]
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no parameter {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(self.describe())}."
            )
        return dataclasses.replace(self, **values)


class AbstractModel(eqx.Module):
    """An agent-based model in discrete time.

    Fields are its constants: whatever is large (a network, a population) belongs in an array field, and then travels as
    an argument of the compiled program. A model draws through `rng` only, and never mentions automatic differentiation,
    a gradient estimator or a horizon.

    `Params`, a class attribute, is the class of its parameters.
    """

    Params: AbstractClassVar[type[Params]]

    @abc.abstractmethod
    def init(self, params: Any, rng: Randomness) -> State:
        """The state before the first step: a PyTree of arrays."""

    @abc.abstractmethod
    def step(self, params: Any, state: Any, inputs_t: Any, rng: Randomness) -> State:
        """The state one step later, of the same structure, shapes and dtypes. `inputs_t`: a slice of `inputs`."""

    @abc.abstractmethod
    def observe(self, params: Any, state: Any, inputs_t: Any, rng: Randomness) -> Outputs:
        """What is kept of the state after each step. It is not a transition: no horizon cuts its direct dependence."""

    def summarise(self, params: Any, outputs: Any) -> PyTree[Array]:
        """What is compared with data, from the outputs of all steps (leading axis: time).

        Whatever accumulates or is delayed (cumulative cases, deaths weeks after infection) belongs here, outside the
        scan over time and so outside the horizon. The default returns the outputs unchanged.
        """
        del params
        return outputs

    @property
    def default_params(self) -> Any:
        """Parameters used where nobody gives any."""
        return self.Params()

    @property
    def default_inputs(self) -> PyTree[Array] | None:
        """Inputs used where nobody gives any (arrays with a leading axis of time), or `None`."""
        return None

    @property
    def n_agents(self) -> int | None:
        """How many agents there are, if that is a length by which arrays of agents are known.

        On many devices, arrays of the model and of its state with a leading axis of that length are divided.
        """
        return None

    @property
    def dates(self) -> "Sequence[datetime.date] | None":
        """Dates of the outputs of all steps of the default inputs, where the model has a calendar."""
        return None

    @property
    def default_steps(self) -> int | None:
        """How many steps to simulate if nobody says, or `None`."""
        return None

    @property
    def differentiable(self) -> bool:
        """Whether its simulations have derivatives."""
        return True

    @property
    def in_jax(self) -> bool:
        """Whether its steps and draws are those of `step`, so that modes, horizons and estimators see them.

        Of another simulator only whole runs are known, and at most their derivatives.
        """
        return True

    @property
    def why_failed(self) -> str:
        """A sentence on the simulations that went wrong so far, if the model knows of any; else empty."""
        return ""


def no_derivative(model: AbstractModel) -> str:
    """The sentence with which a derivative of a model that has none is refused."""
    return f"{type(model).__name__} has no derivative; use estimator = FlowScore() or FiniteDifferences()."


def not_in_jax(model: AbstractModel, what: str) -> str:
    """The sentence with which something that looks into the steps of a simulator outside of JAX is refused."""
    return f"{type(model).__name__} is run outside of JAX, where {what} cannot see its steps and draws; leave it out."


def describe_shapes(tree: PyTree) -> str:
    """Shapes and dtypes of a PyTree, for error messages."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return ", ".join(f"{jax.tree_util.keystr(path) or 'value'}: {x.dtype}{list(x.shape)}" for path, x in leaves)
