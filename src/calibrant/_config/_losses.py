"""Losses from tables."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibrant import losses
from calibrant._config._error import ConfigError
from calibrant._config._schema import LossConfig

_LOSSES = {
    "mean-squared-error": losses.MeanSquaredError,
    "log-mean-squared-error": losses.LogMeanSquaredError,
    "squared-error-of-mean": losses.SquaredErrorOfMean,
    "maximum-mean-discrepancy": losses.MaximumMeanDiscrepancy,
    "energy-score": losses.EnergyScore,
    "kernel-score": losses.KernelScore,
    "binomial": losses.BinomialLogLikelihood,
    "gaussian": losses.GaussianLogLikelihood,
    "poisson": losses.PoissonLogLikelihood,
    "negative-binomial": losses.NegativeBinomialLogLikelihood,
}


def build_loss(given: LossConfig, data: Any, tested: Mapping[str, np.ndarray]) -> losses.AbstractLoss:
    """The loss for data; `tested`, how many were tested, of streams that are shares.

    **Raises:** `ConfigError`.
    """
    if given.streams is not None:
        if given.model_extra or given.every is not None:
            unknown = next(iter(given.model_extra or ["every"]))
            raise ConfigError(f"loss: '{unknown}' belongs to one loss; write it in a table of loss.streams.")
        if not isinstance(data, dict):
            raise ConfigError("loss.streams: the data have no named streams.")
        missing = [name for name in given.streams if name not in data]
        if missing:
            raise ConfigError(f"loss.streams.{missing[0]}: the data have only {', '.join(data)}.")
        built = {
            name: _one_loss(f"loss.streams.{name}", each, data[name], tested.get(name))
            for name, each in given.streams.items()
        }
        loss: losses.AbstractLoss = losses.Streams(built, given.weights)
    elif isinstance(data, dict):
        each = {name: _one_loss("loss", given.arguments, x, tested.get(name)) for name, x in data.items()}
        loss = losses.Streams(each, given.weights)
    elif given.weights:
        raise ConfigError("loss.weights: the data have no named streams to weigh.")
    else:
        loss = _one_loss("loss", given.arguments, data, None)
    return losses.MarginalLikelihood(loss) if given.marginal else loss


def _one_loss(where: str, given: dict[str, Any], data: Any, tested: np.ndarray | None) -> losses.AbstractLoss:
    given = dict(given)
    every = given.pop("every", None)
    name = given.pop("name", None)
    if every is not None:
        if not (isinstance(every, int) and every >= 1):
            raise ConfigError(f"{where}.every: a whole number of steps to add up, got {every!r}.")
        if name == "binomial":
            raise ConfigError(f"{where}.every: shares cannot be added up over time; leave it out.")
        return losses.Periods(_one_loss(where, {"name": name, **given}, data, tested), every)
    if not isinstance(name, str) or name not in _LOSSES:
        raise ConfigError(f"{where}.name: there is no loss {name!r}; there are {', '.join(_LOSSES)}.")
    make = _LOSSES[name]
    from_data = {"maximum-mean-discrepancy": {"data": data}, "binomial": {"tested": tested}}.get(name, {})
    if name == "binomial" and tested is None:
        raise ConfigError(f"{where}: binomial is for shares of those tested; give them in data.shares.")
    accepted = [n for n in inspect.signature(make).parameters if n not in from_data]
    for option in given:
        if option not in accepted:
            raise ConfigError(f"{where}: {name} takes {', '.join(accepted) or 'no options'}, not '{option}'.")
    try:
        return make(**from_data, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} cannot be made from {given} ({error}).") from error
