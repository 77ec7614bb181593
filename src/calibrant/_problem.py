"""`Problem`: a model with its data and the loss that compares them."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from calibrant._devices import place
from calibrant._model import AbstractModel
from calibrant._simulate import resolve_inputs, resolve_steps
from calibrant.losses import AbstractLoss, as_loss


class Problem(eqx.Module):
    """What is to be calibrated.

    **Arguments:**

    - `model`; `data`, arrays shaped like its outputs, NaN where nothing was observed; `loss`, a `losses` object or a
      function `(simulations, data, params) -> scalar`.
    - `params`: values of the parameters that are not free (the model's defaults if `None`).
    - `inputs`, `steps`: as in `simulate`.
    """

    model: AbstractModel
    data: PyTree[Array]
    loss: AbstractLoss
    params: Any
    inputs: PyTree[Array]
    steps: int = eqx.field(static=True)

    def __init__(
        self,
        model: AbstractModel,
        data: Any,
        loss: AbstractLoss | Callable,
        *,
        params: Any = None,
        inputs: Any = None,
        steps: int | None = None,
    ):
        self.model = place(model, model.n_agents)
        self.data = jax.tree.map(lambda x: jnp.asarray(x, dtype=float), data)
        self.loss = as_loss(loss)
        self.params = model.default_params if params is None else params
        if not isinstance(self.params, model.Params):
            raise ValueError(
                f"{type(model).__name__} takes parameters of class {model.Params.__qualname__}, "
                f"got {type(self.params).__name__}."
            )
        self.inputs = resolve_inputs(model, inputs, steps)
        self.steps = resolve_steps(model, self.inputs, steps)
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.data)[0]:
            where = f"data{jax.tree_util.keystr(path)}"
            if bool(jnp.any(jnp.isinf(leaf))):
                raise ValueError(f"{where} holds an infinite number; a value that was not observed is NaN.")
            if not bool(jnp.any(jnp.isfinite(leaf))):
                raise ValueError(f"{where} holds no observed value.")
        self.loss.check(self.data)
        clash = set(self.loss.parameters) & set(self.parameter_names)
        if clash:
            raise ValueError(f"The loss and the model both have a parameter {sorted(clash)}; rename the loss's.")

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the model's parameters."""
        return tuple(self.params.describe())

    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The model's parameters with the free ones replaced; the loss's own are left out."""
        return self.params.replace({k: v for k, v in values.items() if k in self.parameter_names})

    def evaluate(self, simulations: PyTree[Array], values: Mapping[str, Array]) -> Array:
        """The loss of simulations (leading axis: replicates) at the given free values."""
        return self.loss(simulations, self.data, self._named(values))

    def terms(self, simulation: PyTree[Array], values: Mapping[str, Array]) -> Array | None:
        """The loss of one simulation as a sum over times, or `None` where it is none."""
        return self.loss.terms(simulation, self.data, self._named(values))

    def _named(self, values: Mapping[str, Array]) -> dict[str, Array]:
        params = self.with_values(values)
        return {**{name: getattr(params, name) for name in self.parameter_names}, **values}
