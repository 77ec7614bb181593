"""The method: what a configuration may say of it, chosen by `name`."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from calibrant import estimators
from calibrant._autodiff import CheckpointedReverseMode, HybridMode, ReverseMode
from calibrant._config._error import ConfigError
from calibrant._config._gvi import SHARED, GVIConfig, Horizon, build_horizon, one_horizon
from calibrant._config._schema import Count, Strict
from calibrant.inference import MALA, NUTS, SMCABC, Point


class _Differentiated(Strict):
    """What the methods share that take gradients at points: how they are taken."""

    weight: float = Field(default=1.0, gt=0)
    simulations_at_once: Count | None = None
    estimator: Literal[
        "straight-through", "controlled-score", "finite-differences", "score-function", "muprop", "branching"
    ] = "straight-through"
    branches: Count | None = None
    step: PositiveFloat | None = None
    mode: Literal["reverse", "checkpointed", "hybrid"] = "reverse"
    horizon: Horizon = "full"
    keep: list[str] = []
    evaluation_simulations: Count = 100

    _one_horizon = field_validator("horizon", mode="before")(one_horizon)

    @model_validator(mode="after")
    def _arguments_are_used(self):
        if self.branches is not None and self.estimator != "branching":
            raise ValueError("branches is of the estimator branching; name it, or leave branches out")
        if self.step is not None and self.estimator != "finite-differences":
            raise ValueError("step is of the estimator finite-differences; name it, or leave step out")
        return self

    def _arguments(self) -> dict[str, Any]:
        estimator = {
            "straight-through": estimators.Pathwise(),
            "score-function": estimators.ScoreFunction(),
            "controlled-score": estimators.ControlledScore(),
            "muprop": estimators.MuProp(),
            "branching": estimators.Branching(self.branches or 16),
            "finite-differences": estimators.FiniteDifferences(0.2 if self.step is None else self.step),
        }[self.estimator]
        mode = {"reverse": ReverseMode(), "checkpointed": CheckpointedReverseMode(), "hybrid": HybridMode()}[self.mode]
        used = ("estimator", "branches", "step", "mode", "horizon", "keep", "name")
        rest = {name: getattr(self, name) for name in type(self).model_fields if name not in used}
        return {"estimator": estimator, "mode": mode, "horizon": build_horizon(self.horizon, self.keep), **rest}


class PointConfig(_Differentiated):
    """Arguments of `Point`, by name."""

    name: Literal["point"] = "point"
    starts: Count = 8
    replicates: Count = 1
    max_updates: Count = 500
    learning_rate: PositiveFloat = 0.05
    end_simulations: Count = 50
    hessian_step: PositiveFloat = 0.1
    evaluate_every: Count = 50
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)

    def build(self) -> Point:
        """The method."""
        return Point(**self._arguments())


class _ChainsConfig(_Differentiated):
    chains: Count = 4
    replicates: Count = 20
    candidates: Count = 10
    max_simulations: Count | None = None
    max_failed_fraction: float = Field(default=0.9, ge=0, le=1)


class NUTSConfig(_ChainsConfig):
    """Arguments of `NUTS`, by name."""

    name: Literal["nuts"] = "nuts"
    warmup: Count = 500
    draws: Count = 500
    target_acceptance: float = Field(default=0.8, gt=0, lt=1)
    max_doublings: int = Field(default=8, ge=1, le=20)
    evaluate_every: Count = 50

    def build(self) -> NUTS:
        """The method."""
        return NUTS(**self._arguments())


class MALAConfig(_ChainsConfig):
    """Arguments of `MALA`, by name."""

    name: Literal["mala"] = "mala"
    warmup: Count = 1000
    draws: Count = 2000
    target_acceptance: float = Field(default=0.574, gt=0, lt=1)
    evaluate_every: Count = 100

    def build(self) -> MALA:
        """The method."""
        return MALA(**self._arguments())


class SMCABCConfig(Strict):
    """Arguments of `SMCABC`, by name."""

    name: Literal["smc-abc"] = "smc-abc"
    particles: int = Field(default=1000, ge=20)
    replicates: Count = 1
    alpha: float = Field(default=0.8, gt=0, lt=1)
    tolerance: float | None = None
    min_acceptance: float = Field(default=0.015, ge=0, lt=1)
    max_updates: Count = 50
    evaluate_every: Count = 1
    evaluation_simulations: Count = 100
    simulations_at_once: Count | None = None
    max_failed_fraction: float = Field(default=1.0, ge=0, le=1)

    def build(self) -> SMCABC:
        """The method."""
        return SMCABC(**self.model_dump(exclude={"name"}))


#: By name, all methods there are.
METHODS = {"gvi": GVIConfig, "point": PointConfig, "nuts": NUTSConfig, "mala": MALAConfig, "smc-abc": SMCABCConfig}


def _name(given: Any) -> Any:
    """`gvi` where there is none."""
    return given.get("name", "gvi") if isinstance(given, dict) else getattr(given, "name", None)


MethodConfig = Annotated[
    Annotated[GVIConfig, Tag("gvi")]
    | Annotated[PointConfig, Tag("point")]
    | Annotated[NUTSConfig, Tag("nuts")]
    | Annotated[MALAConfig, Tag("mala")]
    | Annotated[SMCABCConfig, Tag("smc-abc")],
    Discriminator(
        _name,
        custom_error_type="method_name",
        custom_error_message=f"its name is one of {', '.join(METHODS)}",
    ),
]


def as_other(given: Any, name: str, *, ensemble: bool) -> Any:
    """The configuration of another method, with what `given` says of simulations and gradients where both have it.

    Replicates of a loss of an ensemble are part of that loss; of others, methods that fix their seeds keep their own.

    **Raises:** `ConfigError` for what the other cannot take.
    """
    if given.name == name:
        return given
    kind = METHODS[name]
    fields = {n: getattr(given, n) for n in SHARED if n in given.model_fields_set and n in kind.model_fields}
    if not ensemble and {given.name, name} & {"nuts", "mala"}:
        fields.pop("replicates", None)
    if fields.get("mode") == "auto":  # modes give the same numbers
        del fields["mode"]
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(x) for x in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"method.{field}: what {given.name} has here is not for {name} ({why}); leave one of them out."
        ) from error
