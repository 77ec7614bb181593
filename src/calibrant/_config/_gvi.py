"""GVI: what a configuration may say of it, and how it is built."""

from typing import Any, Literal

import optax
from pydantic import Field, PositiveFloat, field_validator, model_validator

from calibrant import estimators, posteriors
from calibrant._autodiff import CheckpointedReverseMode, HybridMode, ReverseMode
from calibrant._config._error import ConfigError
from calibrant._config._schema import Count, Strict
from calibrant._horizon import AbstractHorizon, BlockHorizon, FullHorizon, GeometricHorizon, SlidingHorizon
from calibrant._sampling import GumbelSoftmax
from calibrant.inference import GVI, AutoMode, Corrected, FlowScore, LearnProbability, Penalise

_PASSED_ON = (
    "weight",
    "simulations",
    "replicates",
    "max_updates",
    "learning_rate",
    "final_learning_rate",
    "kl_samples",
    "evaluate_every",
    "evaluation_simulations",
    "patience",
    "max_failed_fraction",
    "simulations_at_once",
)


Horizon = Literal["full"] | dict[Literal["sliding", "block", "geometric"], float]


def one_horizon(value: Any) -> Any:
    """Refuse what is no horizon."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, number),) = value.items()
        if kind in ("sliding", "block", "geometric") and isinstance(number, (int, float)) and abs(number) < 1e9:
            return value
    if value != "full":
        raise ValueError('give "full", { sliding = 3 }, { block = 10 } or { geometric = 0.9 }')
    return value


def build_horizon(given: Any, kept: list[str]) -> AbstractHorizon:
    """The horizon.

    **Raises:** `ConfigError`.
    """
    keep = tuple(kept)
    if isinstance(given, str):
        return FullHorizon(keep=keep)
    ((kind, length),) = given.items()
    if kind == "geometric":
        return GeometricHorizon(length, keep=keep)
    if length != round(length):
        raise ConfigError(f"method.horizon: {kind} takes a whole number, got {length}.")
    return SlidingHorizon(int(length), keep=keep) if kind == "sliding" else BlockHorizon(int(length), keep=keep)


#: Fields that say how a problem is simulated and differentiated, in whatever method.
SHARED = ("weight", "replicates", "simulations_at_once", "estimator", "step", "branches", "mode", "horizon", "keep")


class GVIConfig(Strict):
    """Arguments of `GVI`, by name."""

    name: Literal["gvi"] = "gvi"
    weight: float = Field(default=1.0, ge=0)
    simulations: Count = 5
    replicates: Count = 1
    max_updates: Count = 5000
    learning_rate: PositiveFloat = 1e-3
    final_learning_rate: PositiveFloat | None = None
    kl_samples: Count = 1000
    evaluate_every: Count = 100
    evaluation_simulations: Count = 100
    patience: Count | None = None
    max_failed_fraction: float | None = Field(default=None, ge=0, le=1)
    failures: Literal["leave-out", "learn"] | dict[Literal["penalty"], float] = "leave-out"
    simulations_at_once: Count | None = None
    estimator: Literal[
        "straight-through",
        "corrected",
        "controlled-score",
        "finite-differences",
        "score-function",
        "muprop",
        "rebar",
        "relax",
        "branching",
        "gumbel-softmax",
        "flow-score",
    ] = "straight-through"
    temperature: PositiveFloat | dict[Literal["from", "to"], PositiveFloat] | None = None
    branches: Count | None = None
    differences: Count | None = None
    step: PositiveFloat | None = None
    mode: Literal["reverse", "checkpointed", "hybrid", "auto"] = "reverse"
    memory: PositiveFloat | None = None
    horizon: Horizon = "full"
    keep: list[str] = []
    posterior: Literal["masked-autoregressive", "coupling-spline", "full-rank-gaussian"] = "masked-autoregressive"
    initial_scale: PositiveFloat = 1.0

    _one_horizon = field_validator("horizon", mode="before")(one_horizon)

    @field_validator("failures", mode="before")
    @classmethod
    def _one_way(cls, value: Any) -> Any:
        if value in ("leave-out", "learn") or (isinstance(value, dict) and set(value) == {"penalty"}):
            return value
        raise ValueError('give "leave-out", "learn" or { penalty = 100.0 }, a loss')

    @model_validator(mode="after")
    def _arguments_are_used(self):
        if self.initial_scale != 1 and self.posterior != "full-rank-gaussian":
            raise ValueError(
                "initial_scale is of the posterior full-rank-gaussian; name it, or leave initial_scale out"
            )
        if self.temperature is not None and self.estimator not in ("gumbel-softmax", "rebar", "relax"):
            raise ValueError(
                "temperature is of the estimators gumbel-softmax, rebar and relax; name one, or leave temperature out"
            )
        if isinstance(self.temperature, dict) and (self.estimator != "gumbel-softmax" or len(self.temperature) != 2):
            raise ValueError("a temperature { from = 1.0, to = 0.1 } is of gumbel-softmax; others take a number")
        if self.branches is not None and self.estimator != "branching":
            raise ValueError("branches is of the estimator branching; name it, or leave branches out")
        if self.memory is not None and self.mode != "auto":
            raise ValueError('memory is of the mode auto; set mode = "auto", or leave memory out')
        if self.mode == "auto" and self.simulations_at_once is not None:
            raise ValueError("the mode auto chooses simulations_at_once; leave it out")
        if self.differences is not None and self.estimator != "corrected":
            raise ValueError("differences is of the estimator corrected; name it, or leave differences out")
        if self.step is not None and self.estimator not in ("finite-differences", "corrected"):
            raise ValueError("step is of the estimators finite-differences and corrected; name one, or leave step out")
        return self

    def build(self) -> GVI:
        """The method."""
        step = 0.2 if self.step is None else self.step
        estimator = {
            "straight-through": estimators.Pathwise,
            "corrected": lambda: Corrected(differences=self.differences or 2, step=step),
            "gumbel-softmax": lambda: estimators.Pathwise(GumbelSoftmax(self._temperature(0.1))),
            "rebar": lambda: estimators.REBAR(self._temperature(0.5)),
            "relax": lambda: estimators.RELAX(self._temperature(0.5)),
            "score-function": estimators.ScoreFunction,
            # With few replicates it learns from the other values of the update.
            "controlled-score": lambda: estimators.ControlledScore(pool=self.replicates < 8),
            "muprop": estimators.MuProp,
            "branching": lambda: estimators.Branching(self.branches or 16),
            "finite-differences": lambda: estimators.FiniteDifferences(step),
            "flow-score": FlowScore,
        }[self.estimator]()
        mode = {
            "reverse": ReverseMode,
            "checkpointed": CheckpointedReverseMode,
            "hybrid": HybridMode,
            "auto": lambda: AutoMode(self.memory),
        }[self.mode]()
        family = {
            "masked-autoregressive": posteriors.MaskedAutoregressiveFlow,
            "coupling-spline": posteriors.CouplingSplineFlow,
            "full-rank-gaussian": lambda: posteriors.FullRankGaussian(self.initial_scale),
        }[self.posterior]()
        arguments: Any = {name: getattr(self, name) for name in _PASSED_ON}
        if isinstance(self.failures, dict):
            arguments["failures"] = Penalise(self.failures["penalty"])
        elif self.failures == "learn":
            arguments["failures"] = LearnProbability()
        return GVI(
            estimator=estimator, mode=mode, horizon=build_horizon(self.horizon, self.keep), family=family, **arguments
        )

    def _temperature(self, default: float) -> Any:
        if not isinstance(self.temperature, dict):
            return self.temperature or default
        start, end = self.temperature["from"], self.temperature["to"]
        return optax.exponential_decay(start, self.max_updates, end / start)
