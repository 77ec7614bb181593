"""A class of parameters from a table of them."""

import keyword
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from calibrant._model import ParameterInfo, Params, parameter


def params_class(given: "type[Params] | Mapping[str, Any]") -> type[Params]:
    """`given` itself, or a class with these fields: name -> `parameter(...)`, a `ParameterInfo`, or the default alone.

    **Raises:** `ValueError` for names that are none in Python and for defaults that are no finite numbers.
    """
    if isinstance(given, type) and issubclass(given, Params):
        return given
    if not isinstance(given, Mapping) or not given:
        raise ValueError("`parameters` is a mapping of names to calibrant.parameter(...), with at least one.")
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or hasattr(Params, name):
            raise ValueError(f"A parameter cannot be called {name!r}; take letters, digits and _, as in Python.")
        info = getattr(value, "metadata", {}).get("parameter", value)
        info = info if isinstance(info, ParameterInfo) else ParameterInfo(value, None, "", "")
        try:
            finite = bool(np.all(np.isfinite(np.asarray(info.default, dtype=float))))
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ValueError(f"The default of the parameter '{name}' is no finite number, nor an array of them.")
        fields[name] = parameter(info.default, prior=info.prior, units=info.units, description=info.description)
    namespace = {"__annotations__": dict.fromkeys(fields, jax.Array), "__module__": __name__, **fields}
    return types.new_class("BlackBoxParams", (Params,), exec_body=lambda body: body.update(namespace))
