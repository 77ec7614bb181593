"""Models by name."""

import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from calibrant._config._error import ConfigError
from calibrant._config._foreign import FOREIGN, build_foreign
from calibrant._model import AbstractModel
from calibrant.models import (
    SIR,
    BoardingSchoolSIBR,
    BoardingSchoolSIR,
    BrockHommes,
    RandomWalk,
    RegionalSIR,
    ThresholdMarket,
)
from calibrant.models.june import june_from_options

#: name -> (what makes it from `options`, one line about it)
MODELS: dict[str, tuple[Any, str]] = {
    "boarding-school": (BoardingSchoolSIR, "influenza of 1978: SIR, the boys in bed are infectious"),
    "boarding-school-in-bed": (BoardingSchoolSIBR, "influenza of 1978: boys are infectious before they are in bed"),
    "brock-hommes": (BrockHommes, "asset prices with four strategies; agents = 0 for the mean field"),
    "june": (june_from_options, "an epidemic in a city, agent by agent: households, work, school, leisure"),
    "random-walk": (RandomWalk, "walkers that step up or down"),
    "regional-sir": (RegionalSIR, "SIR with a transmission rate for every area and week"),
    "sir": (SIR.small_world, "susceptible, infected, recovered, in households and groups"),
    "threshold-market": (ThresholdMarket, "returns of traders who act on news above a threshold (Cont 2007)"),
}


def build_model(name: str, options: dict[str, Any], directory: Path) -> AbstractModel:
    """A bundled model; one of the user's, `module:Class`, found beside the config or on Python's path; or another
    simulator: a `command`, a `python` function, or one in PyTorch, `torch`.

    **Raises:** `ConfigError`.
    """
    if name in FOREIGN:
        return build_foreign(name, options, directory)
    if name in MODELS:
        make = MODELS[name][0]
        if name == "brock-hommes" and options.get("agents") == 0:
            options = {**options, "agents": None}
    elif ":" in name:
        make = _import(name, directory)
    else:
        known = ", ".join((*MODELS, *FOREIGN))
        raise ConfigError(f"model.name: there is no model '{name}'; there are {known}, or module:Class.")
    if not callable(make):
        raise ConfigError(f"model.name: {name} is no class or function that makes a model.")
    accepted = [n for n in inspect.signature(make).parameters if n != "directory"]
    if name in MODELS and "directory" in inspect.signature(make).parameters:
        make = functools.partial(make, directory=directory)
    for option in options:
        if option not in accepted:
            raise ConfigError(f"model.options: {name} takes {', '.join(accepted) or 'none'}, not '{option}'.")
    try:
        model = make(**options)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise ConfigError(f"model.options: {name} cannot be made from {options}: {error}") from error
    if not isinstance(model, AbstractModel):
        raise ConfigError(f"model.name: {name} makes a {type(model).__name__}, which is no calibrant.AbstractModel.")
    return model


def _import(name: str, directory: Path) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(directory))
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever a module of the user's does when it is imported
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"model.name: module '{module}' cannot be imported ({why}).") from error
    finally:
        sys.path.remove(str(directory))
    if not hasattr(imported, attribute):
        raise ConfigError(f"model.name: module '{module}' has no '{attribute}'.")
    return getattr(imported, attribute)
