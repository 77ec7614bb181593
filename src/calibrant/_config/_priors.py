"""Priors from tables."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from calibrant._config._error import ConfigError


def _distribution(kind: Any) -> "Callable[..., dist.Distribution] | None":
    """What numpyro calls so: a class, or a function that makes one (TruncatedNormal)."""
    made = getattr(dist, kind, None) if isinstance(kind, str) and kind[:1].isupper() else None
    return made if callable(made) else None  # pyright: ignore[reportReturnType]


def build_prior(name: str, given: dict[str, Any]) -> dist.Distribution:
    """The prior of one parameter.

    **Raises:** `ConfigError`.
    """
    given = dict(given)
    kind = given.pop("distribution", None)
    make = _distribution(kind)
    if make is None:
        raise ConfigError(f"parameters.{name}.prior: `distribution` must name a numpyro distribution, got {kind!r}.")
    try:
        numbers = {
            k: v if k == "num_steps" else float(v) if isinstance(v, (int, float)) else np.asarray(v, float)
            for k, v in given.items()
        }
        prior = make(**numbers, validate_args=True)
        with warnings.catch_warnings():  # numpyro warns of what is refused below
            warnings.simplefilter("ignore")
            density = prior.log_prob(prior.sample(jax.random.key(0), (8,)))
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        why = str(error) or "it is no distribution by itself"
        raise ConfigError(f"parameters.{name}.prior: {kind} cannot be made from {given} ({why}).") from error
    if isinstance(prior, dist.Delta):
        raise ConfigError(f"parameters.{name}.prior: Delta has no width; give `value` instead of `prior`.")
    if not np.all(np.isfinite(density)):
        raise ConfigError(f"parameters.{name}.prior: {kind} cannot be made from {given}, it has no finite density.")
    return prior
