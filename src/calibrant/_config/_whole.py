"""A whole configuration, built into a problem, its priors and a method."""

from pathlib import Path
from typing import Literal

import jax
import numpy as np

from calibrant._config._data import build_data
from calibrant._config._error import ConfigError
from calibrant._config._gvi import GVIConfig
from calibrant._config._losses import build_loss
from calibrant._config._method import MethodConfig
from calibrant._config._models import build_model
from calibrant._config._priors import build_prior
from calibrant._config._schema import DataConfig, DevicesConfig, LossConfig, ModelConfig, ParameterConfig, Strict
from calibrant._model import AbstractModel
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._simulate import simulate
from calibrant.inference import AbstractMethod


class Config(Strict):
    """A whole calibration."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    parameters: dict[str, ParameterConfig] = {}
    method: MethodConfig = GVIConfig()
    devices: Literal["auto"] | DevicesConfig | None = None

    def build(self, directory: Path) -> tuple[Problem, Prior, AbstractMethod]:
        """Problem, prior and method; relative paths are taken from `directory`.

        **Raises:** `ConfigError`.
        """
        model = build_model(self.model.name, self.model.options, directory)
        fixed = {name: p.value for name, p in self.parameters.items() if p.value is not None}
        described = model.Params.describe()
        for name, value in fixed.items():
            if name not in described:
                raise ConfigError(f"parameters.{name}: the model has only {', '.join(described)}.")
            shape = np.shape(getattr(model.default_params, name))
            if np.shape(value) != shape:
                raise ConfigError(f"parameters.{name}: it has shape {shape}, and the value {np.shape(value)}.")
        try:
            params = model.default_params.replace(fixed)
            data, tested = build_data(self.data, model, params, self.model.steps, directory)
            steps = self._fitted_steps(model)
            if steps is not None and self.data.date_column is not None:
                data = {name: x[:steps] for name, x in data.items()}
            problem = Problem(model, data, build_loss(self.loss, data, tested), params=params, steps=steps)
            priors = {n: build_prior(n, p.prior) for n, p in self.parameters.items() if p.prior is not None}
            own = [n for n, info in described.items() if info.prior is not None]
            free = [n for n in (*described, *problem.loss.parameters) if (n in own or n in priors) and n not in fixed]
            unknown = [n for n in priors if n not in free]
            if unknown:
                known = ", ".join((*described, *problem.loss.parameters))
                raise ConfigError(f"parameters.{unknown[0]}: there is no such parameter; there are {known}.")
            prior = Prior.of(problem, priors, free)
            method = self.method.build()
            method.check(problem, prior)
            _check_shapes(problem)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        except (ArithmeticError, MemoryError) as error:
            raise ConfigError(f"a number of the configuration is too large ({error}).") from error
        return problem, prior, method

    def _fitted_steps(self, model: AbstractModel) -> int | None:
        """Steps up to the last day that is fitted."""
        until, dates = self.data.until, model.dates
        if until is None or dates is None:
            return self.model.steps
        if self.model.steps is not None:
            raise ConfigError("model.steps and data.until both say how much is simulated; give one.")
        if not dates[0] <= until <= dates[-1]:
            raise ConfigError(f"data.until: {until} is outside the calendar, {dates[0]} to {dates[-1]}.")
        return (until - dates[0]).days + 1

    def forecast(self, problem: Problem, directory: Path) -> Problem | None:
        """The problem over the whole calendar, held-out data included; `None` if nothing is held out.

        **Raises:** `ConfigError`.
        """
        if self.data.until is None or problem.model.dates is None:
            return None
        data, _ = build_data(self.data, problem.model, problem.params, self.model.steps, directory)
        return Problem(problem.model, data, problem.loss, params=problem.params)


def _check_shapes(problem: Problem) -> None:
    """Evaluate the loss on abstract values: data of the wrong shape are found before anything runs."""

    def once():
        outputs = simulate(problem.model, problem.params, seed=0, steps=problem.steps).outputs
        many = jax.tree.map(lambda x: jax.numpy.stack([x] * max(2, problem.loss.min_replicates)), outputs)
        return problem.evaluate(many, dict.fromkeys(problem.loss.parameters, jax.numpy.ones(())))

    jax.eval_shape(once)
