"""What a configuration may say of the model, the parameters, the data and the loss."""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: How many.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: A number of single precision.
Number = Annotated[float, Field(ge=-3e38, le=3e38)]


class Strict(BaseModel):
    """Fields that are not known are refused, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelConfig(Strict):
    """`name`: a bundled model (`calibrant models`), `module:Class`, or `command` or `python` for another simulator;
    `options`: its arguments; `steps`."""

    name: str
    options: dict[str, Any] = {}
    steps: Count | None = None


class DevicesConfig(Strict):
    """A mesh of devices: so many along simulations times so many along agents."""

    simulations: Count = 1
    agents: Count = 1


class ParameterConfig(Strict):
    """A free parameter has a `prior`, `{ distribution = "Uniform", low = 0, high = 1 }`; a fixed one a `value`."""

    prior: dict[str, Any] | None = None
    value: Number | list[Number] | None = None
    units: str = ""
    description: str = ""

    @model_validator(mode="after")
    def _one_of(self):
        if self.prior is not None and self.value is not None:
            raise ValueError("give either a prior (free) or a value (fixed), not both")
        return self


class SyntheticConfig(Strict):
    """Data simulated by the model itself, at its defaults and the fixed parameters but for `values`."""

    seed: int = Field(ge=0)
    values: dict[str, Number | list[Number]] = {}


class ShareConfig(Strict):
    """Of a stream that is a share, such as seroprevalence: a CSV with those tested and those positive, by date.

    `pool`: tests of so many days are put together, on the middle day.
    """

    file: str
    positive: str
    tested: str
    date_column: str = "date"
    select: dict[str, str] = {}
    pool: Count = 1


class DataConfig(Strict):
    """One of `file` (a CSV with a header), `bundled` and `synthetic`.

    `columns` maps outputs of the model to columns; `column` names the one column of a model with one output. With a
    `date_column`, rows are matched by date to the model's calendar, and `until`, a date, is the last day that is
    fitted: what comes later is held out, and shown beside a forecast; `select` keeps only the rows with these entries,
    `{ region = "london" }`; `shares` adds streams that are shares of those tested, each from a file of its own.
    `streams` names the outputs to keep of synthetic or bundled data.
    """

    file: str | None = None
    column: str | None = None
    columns: dict[str, str] = {}
    bundled: Literal["influenza-1978"] | None = None
    date_column: str | None = None
    until: dt.date | None = None
    select: dict[str, str] = {}
    shares: dict[str, ShareConfig] = {}
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
        for name in ("until", "select", "shares"):
            if getattr(self, name) and self.date_column is None:
                raise ValueError(f"{name} needs a file with a date_column")
        both = set(self.columns) & set(self.shares)
        if both:
            raise ValueError(f"'{min(both)}' is both in columns and in shares; give it once")
        return self


class LossConfig(BaseModel):
    """`name` of a loss and its arguments; or `streams`, one such table an output, with `weights`; `marginal`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str | None = None
    streams: dict[str, dict[str, Any]] | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    marginal: bool = False
    every: Count | None = None

    @model_validator(mode="after")
    def _one_of(self):
        if (self.name is None) == (self.streams is None):
            raise ValueError("give either a name or streams")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Name and arguments of the one loss."""
        return {"name": self.name, "every": self.every, **(self.model_extra or {})}
