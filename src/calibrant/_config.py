"""Configurations: a TOML file to a problem, its priors and a method. Every mistake is one sentence."""

import csv
import datetime as dt
import functools
import importlib
import inspect
import sys
import tomllib
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import numpyro.distributions as dist
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from calibrant import estimators, losses, posteriors
from calibrant._autodiff import CheckpointedReverseMode, HybridMode, ReverseMode
from calibrant._horizon import AbstractHorizon, BlockHorizon, FullHorizon, GeometricHorizon, SlidingHorizon
from calibrant._model import AbstractModel
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._sampling import GumbelSoftmax
from calibrant._simulate import simulate
from calibrant.data import DataError, read_series
from calibrant.inference import GVI, FlowScore
from calibrant.models import (
    OUTBREAK_1978,
    SIR,
    BoardingSchoolSIBR,
    BoardingSchoolSIR,
    BrockHommes,
    RandomWalk,
)
from calibrant.models.june import june_from_options


class ConfigError(ValueError):
    """A mistake in a configuration or in a file it names."""


#: name -> (what makes it from `options`, one line about it)
MODELS: dict[str, tuple[Any, str]] = {
    "boarding-school": (BoardingSchoolSIR, "influenza of 1978: SIR, the boys in bed are infectious"),
    "boarding-school-in-bed": (BoardingSchoolSIBR, "influenza of 1978: boys are infectious before they are in bed"),
    "brock-hommes": (BrockHommes, "asset prices with four strategies; agents = 0 for the mean field"),
    "june": (june_from_options, "an epidemic in a city, agent by agent: households, work, school, leisure"),
    "random-walk": (RandomWalk, "walkers that step up or down"),
    "sir": (SIR.small_world, "susceptible, infected, recovered, in households and groups"),
}
_LOSSES = {
    "mean-squared-error": losses.MeanSquaredError,
    "log-mean-squared-error": losses.LogMeanSquaredError,
    "squared-error-of-mean": losses.SquaredErrorOfMean,
    "maximum-mean-discrepancy": losses.MaximumMeanDiscrepancy,
    "energy-score": losses.EnergyScore,
    "kernel-score": losses.KernelScore,
    "gaussian": losses.GaussianLogLikelihood,
    "poisson": losses.PoissonLogLikelihood,
    "negative-binomial": losses.NegativeBinomialLogLikelihood,
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelConfig(_Strict):
    """`name`: a bundled model (`calibrant models`) or `module:Class`; `options`: its arguments; `steps`."""

    name: str
    options: dict[str, Any] = {}
    steps: PositiveInt | None = None


class ParameterConfig(_Strict):
    """A free parameter has a `prior`, `{ distribution = "Uniform", low = 0, high = 1 }`; a fixed one a `value`."""

    prior: dict[str, Any] | None = None
    value: float | list[float] | None = None
    units: str = ""
    description: str = ""

    @model_validator(mode="after")
    def _one_of(self):
        if self.prior is not None and self.value is not None:
            raise ValueError("give either a prior (free) or a value (fixed), not both")
        return self


class SyntheticConfig(_Strict):
    """Data simulated by the model itself, at its defaults and the fixed parameters but for `values`."""

    seed: int = Field(ge=0)
    values: dict[str, float | list[float]] = {}


class DataConfig(_Strict):
    """One of `file` (a CSV with a header), `bundled` and `synthetic`.

    `columns` maps outputs of the model to columns; `column` names the one column of a model with one output. With a
    `date_column`, rows are matched by date to the model's calendar, and `until`, a date, is the last day that is
    fitted: what comes later is held out, and shown beside a forecast. `streams` names the outputs to keep of synthetic
    or bundled data.
    """

    file: str | None = None
    column: str | None = None
    columns: dict[str, str] = {}
    bundled: Literal["influenza-1978"] | None = None
    date_column: str | None = None
    until: dt.date | None = None
    streams: list[str] | None = None
    synthetic: SyntheticConfig | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if sum(x is not None for x in (self.file, self.bundled, self.synthetic)) != 1:
            raise ValueError("give exactly one of file, bundled and synthetic")
        if self.file is not None and (self.column is None) == (not self.columns):
            raise ValueError("a file needs either column or columns")
        if self.file is not None and self.streams is not None:
            raise ValueError("streams belongs to synthetic or bundled data; of a file, columns says what is used")
        if self.date_column is not None and (self.file is None or not self.columns):
            raise ValueError("date_column belongs to a file with columns")
        if self.until is not None and self.date_column is None:
            raise ValueError("until needs a file with a date_column")
        return self


_PASSED_ON = (
    "weight",
    "simulations",
    "replicates",
    "max_updates",
    "learning_rate",
    "kl_samples",
    "evaluate_every",
    "evaluation_simulations",
    "patience",
    "max_failed_fraction",
    "simulations_at_once",
)


class LossConfig(BaseModel):
    """`name` of a loss and its arguments; or `streams`, one such table an output, with `weights`; `marginal`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str | None = None
    streams: dict[str, dict[str, Any]] | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    marginal: bool = False
    every: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_of(self):
        if (self.name is None) == (self.streams is None):
            raise ValueError("give either a name or streams")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Name and arguments of the one loss."""
        return {"name": self.name, "every": self.every, **(self.model_extra or {})}


class MethodConfig(_Strict):
    """Arguments of `GVI`, by name."""

    weight: float = Field(default=1.0, ge=0)
    simulations: PositiveInt = 5
    replicates: PositiveInt = 1
    max_updates: PositiveInt = 5000
    learning_rate: PositiveFloat = 1e-3
    kl_samples: PositiveInt = 1000
    evaluate_every: PositiveInt = 100
    evaluation_simulations: PositiveInt = 100
    patience: PositiveInt | None = None
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    simulations_at_once: PositiveInt | None = None
    estimator: Literal["straight-through", "gumbel-softmax", "score-function", "flow-score"] = "straight-through"
    temperature: PositiveFloat | None = None
    mode: Literal["reverse", "checkpointed", "hybrid"] = "reverse"
    horizon: Literal["full"] | dict[Literal["sliding", "block", "geometric"], float] = "full"
    keep: list[str] = []
    posterior: Literal["masked-autoregressive", "coupling-spline", "full-rank-gaussian"] = "masked-autoregressive"

    @field_validator("horizon", mode="before")
    @classmethod
    def _one_horizon(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1:
            ((kind, number),) = value.items()
            if kind in ("sliding", "block", "geometric") and isinstance(number, (int, float)) and np.isfinite(number):
                return value
        if value != "full":
            raise ValueError('give "full", { sliding = 3 }, { block = 10 } or { geometric = 0.9 }')
        return value

    @model_validator(mode="after")
    def _temperature_is_used(self):
        if self.temperature is not None and self.estimator != "gumbel-softmax":
            raise ValueError("temperature is of the estimator gumbel-softmax; name it, or leave temperature out")
        return self

    def build(self) -> GVI:
        """The method."""
        estimator = {
            "straight-through": estimators.Pathwise(),
            "gumbel-softmax": estimators.Pathwise(GumbelSoftmax(self.temperature or 0.1)),
            "score-function": estimators.ScoreFunction(),
            "flow-score": FlowScore(),
        }[self.estimator]
        mode = {"reverse": ReverseMode(), "checkpointed": CheckpointedReverseMode(), "hybrid": HybridMode()}[self.mode]
        family = {
            "masked-autoregressive": posteriors.MaskedAutoregressiveFlow(),
            "coupling-spline": posteriors.CouplingSplineFlow(),
            "full-rank-gaussian": posteriors.FullRankGaussian(),
        }[self.posterior]
        arguments = {name: getattr(self, name) for name in _PASSED_ON}
        return GVI(estimator=estimator, mode=mode, horizon=self._horizon(), family=family, **arguments)

    def _horizon(self) -> AbstractHorizon:
        keep = tuple(self.keep)
        if isinstance(self.horizon, str):
            return FullHorizon(keep=keep)
        ((kind, length),) = self.horizon.items()
        if kind == "geometric":
            return GeometricHorizon(length, keep=keep)
        if length != round(length):
            raise ConfigError(f"method.horizon: {kind} takes a whole number, got {length}.")
        return SlidingHorizon(int(length), keep=keep) if kind == "sliding" else BlockHorizon(int(length), keep=keep)


class Config(_Strict):
    """A whole calibration."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    parameters: dict[str, ParameterConfig] = {}
    method: MethodConfig = MethodConfig()

    def build(self, directory: Path) -> tuple[Problem, Prior, GVI]:
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
            data = self._data(model, params, directory)
            steps = self._fitted_steps(model)
            if steps is not None and self.data.date_column is not None:
                data = {name: x[:steps] for name, x in data.items()}
            problem = Problem(model, data, _build_loss(self.loss, data), params=params, steps=steps)
            priors = {n: _build_prior(n, p.prior) for n, p in self.parameters.items() if p.prior is not None}
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
        data = self._data(problem.model, problem.params, directory)
        return Problem(problem.model, data, problem.loss, params=problem.params)

    def _data(self, model: AbstractModel, params: Any, directory: Path) -> Any:
        data = self.data
        if data.synthetic is not None:
            truth = params.replace(data.synthetic.values)
            outputs = simulate(model, truth, seed=data.synthetic.seed, steps=self.model.steps).outputs
            return _kept(outputs, data.streams, "the model")
        if data.bundled is not None:
            streams = {
                "in_bed": OUTBREAK_1978.in_bed,
                "convalescent": OUTBREAK_1978.convalescent,
                "ever_ill": OUTBREAK_1978.ever_ill,
            }
            return _kept({k: np.asarray(x, dtype=float) for k, x in streams.items()}, data.streams, "influenza-1978")
        assert data.file is not None
        path = directory / data.file
        if data.column is not None:
            return read_column(path, data.column)
        if data.date_column is not None:
            if model.dates is None:
                raise ConfigError("data.date_column: this model has no calendar to match dates with; leave it out.")
            try:
                return read_series(path, data.columns, model.dates, date_column=data.date_column)
            except DataError as error:
                raise ConfigError(f"data: {error}") from error
        return {output: read_column(path, column) for output, column in data.columns.items()}


def _kept(outputs: Any, names: list[str] | None, what: str) -> Any:
    """Only the named outputs."""
    if names is None:
        return outputs
    if not isinstance(outputs, dict):
        raise ConfigError(f"data.streams: {what} has one output without a name; leave streams out.")
    for name in names:
        if name not in outputs:
            raise ConfigError(f"data.streams: '{name}' is not in {what}; it has {', '.join(outputs)}.")
    return {name: outputs[name] for name in names}


def build_model(name: str, options: dict[str, Any], directory: Path) -> AbstractModel:
    """A bundled model or one of the user's, `module:Class`, found beside the config or on Python's path.

    **Raises:** `ConfigError`.
    """
    if name in MODELS:
        make = MODELS[name][0]
        if name == "brock-hommes" and options.get("agents") == 0:
            options = {**options, "agents": None}
    elif ":" in name:
        make = _import(name, directory)
    else:
        raise ConfigError(f"model.name: there is no model '{name}'; there are {', '.join(MODELS)}, or module:Class.")
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
    except (TypeError, ValueError) as error:
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


def _distribution(kind: Any) -> "Callable[..., dist.Distribution] | None":
    """What numpyro calls so: a class, or a function that makes one (TruncatedNormal)."""
    made = getattr(dist, kind, None) if isinstance(kind, str) and kind[:1].isupper() else None
    return made if callable(made) else None  # pyright: ignore[reportReturnType]


def _build_prior(name: str, given: dict[str, Any]) -> dist.Distribution:
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


def _build_loss(given: LossConfig, data: Any) -> losses.AbstractLoss:
    if given.streams is not None:
        if given.model_extra or given.every is not None:
            unknown = next(iter(given.model_extra or ["every"]))
            raise ConfigError(f"loss: '{unknown}' belongs to one loss; write it in a table of loss.streams.")
        if not isinstance(data, dict):
            raise ConfigError("loss.streams: the data have no named streams.")
        missing = [name for name in given.streams if name not in data]
        if missing:
            raise ConfigError(f"loss.streams.{missing[0]}: the data have only {', '.join(data)}.")
        built = {name: _one_loss(f"loss.streams.{name}", each, data[name]) for name, each in given.streams.items()}
        loss: losses.AbstractLoss = losses.Streams(built, given.weights)
    elif isinstance(data, dict):
        each = {name: _one_loss("loss", given.arguments, x) for name, x in data.items()}
        loss = losses.Streams(each, given.weights)
    elif given.weights:
        raise ConfigError("loss.weights: the data have no named streams to weigh.")
    else:
        loss = _one_loss("loss", given.arguments, data)
    return losses.MarginalLikelihood(loss) if given.marginal else loss


def _one_loss(where: str, given: dict[str, Any], data: Any) -> losses.AbstractLoss:
    given = dict(given)
    every = given.pop("every", None)
    if every is not None:
        if not (isinstance(every, int) and every >= 1):
            raise ConfigError(f"{where}.every: a whole number of steps to add up, got {every!r}.")
        return losses.Periods(_one_loss(where, given, data), every)
    name = given.pop("name", None)
    if name not in _LOSSES:
        raise ConfigError(f"{where}.name: there is no loss {name!r}; there are {', '.join(_LOSSES)}.")
    make = _LOSSES[name]
    accepted = [n for n in inspect.signature(make).parameters if n != "data"]
    for option in given:
        if option not in accepted:
            raise ConfigError(f"{where}: {name} takes {', '.join(accepted) or 'no options'}, not '{option}'.")
    try:
        return make(data, **given) if name == "maximum-mean-discrepancy" else make(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} cannot be made from {given} ({error}).") from error


def _check_shapes(problem: Problem) -> None:
    """Evaluate the loss on abstract values: data of the wrong shape are found before anything runs."""

    def once():
        outputs = simulate(problem.model, problem.params, seed=0, steps=problem.steps).outputs
        many = jax.tree.map(lambda x: jax.numpy.stack([x] * max(2, problem.loss.min_replicates)), outputs)
        return problem.evaluate(many, dict.fromkeys(problem.loss.parameters, jax.numpy.ones(())))

    jax.eval_shape(once)


def read_column(path: Path, column: str) -> np.ndarray:
    """One numeric column of a CSV with a header; blanks become NaN, which means not observed.

    **Raises:** `ConfigError`.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if column not in header:
                raise ConfigError(f"data: {path} has no column '{column}'; it has {', '.join(header) or 'none'}.")
            values = []
            for line, row in enumerate(reader, start=2):
                text = (row[column] or "").strip()
                try:
                    values.append(float(text) if text else np.nan)
                except ValueError:
                    raise ConfigError(
                        f"data: {path}, line {line}: '{text}' in column '{column}' is no number."
                    ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"data: {path} cannot be read ({error}).") from error
    out = np.asarray(values, dtype=float)
    if not np.isfinite(out).any():
        raise ConfigError(f"data: column '{column}' of {path} holds no number.")
    if np.isinf(out).any():
        raise ConfigError(f"data: column '{column}' of {path} holds an infinite number.")
    return out


def bundled_configs() -> dict[str, str]:
    """Name -> text of the configurations that come with the package."""
    folder = files("calibrant") / "configs"
    return {f.name.removesuffix(".toml"): f.read_text() for f in sorted(folder.iterdir(), key=lambda f: f.name)}


def load_config(name: str) -> tuple[Config, Path, str]:
    """A configuration by bundled name or path: itself, the directory it is relative to, its text.

    **Raises:** `ConfigError`.
    """
    bundled = bundled_configs()
    if name in bundled:
        return parse_config(bundled[name], name), Path.cwd(), bundled[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"There is no config '{name}'; give a TOML file or one of {', '.join(bundled)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}).") from error
    return parse_config(text, str(path)), path.resolve().parent, text


def parse_config(text: str, where: str) -> Config:
    """A configuration from TOML text.

    **Raises:** `ConfigError`, naming the first field that is wrong.
    """
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(x) for x in first["loc"]) or "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        raise ConfigError(f"{where}: {field}: {message}.") from error
