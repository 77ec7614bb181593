"""Other simulators: a command, or a Python function."""

import abc
import datetime as dt
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, ValidationError

from calibrant._config._error import ConfigError
from calibrant._config._schema import Count, Strict
from calibrant._model import parameter
from calibrant.black_box import AbstractSimulator, BlackBox, Command, Csv, Joblib, Json, PythonFunction


class _Parameter(Strict):
    """A parameter of the simulator. Its prior stands in `[parameters]`, as that of any model."""

    default: float | list[float]
    units: str = ""
    description: str = ""


class _Options(Strict, abc.ABC):
    """Options of both: `parameters` and `outputs` of the simulator, and how its runs are made; see `BlackBox`.

    `start`: the date of the first output, where outputs are daily.
    """

    parameters: dict[str, float | list[float] | _Parameter] = Field(min_length=1)
    outputs: dict[str, Count | list[Count]] = Field(min_length=1)
    workers: Count | None = None
    timeout: PositiveFloat | None = None
    retries: NonNegativeInt = 0
    keep_errors_in: str | None = None
    start: dt.date | None = None

    @abc.abstractmethod
    def simulator(self, directory: Path) -> AbstractSimulator:
        """What makes a run."""

    def build(self, directory: Path) -> BlackBox:
        """The model; relative paths are taken from `directory`."""
        described: dict[str, Any] = {}
        for name, given in self.parameters.items():
            p = given if isinstance(given, _Parameter) else _Parameter(default=given)
            described[name] = parameter(p.default, units=p.units, description=p.description)
        shapes = {name: (x,) if isinstance(x, int) else tuple(x) for name, x in self.outputs.items()}
        days = max(shape[0] for shape in shapes.values() if shape) if any(shapes.values()) else 0
        return BlackBox(
            self.simulator(directory),
            parameters=described,
            outputs=shapes,
            executor=Joblib(self.workers),
            timeout=self.timeout,
            retries=self.retries,
            keep_errors_in=None if self.keep_errors_in is None else directory / self.keep_errors_in,
            dates=None if self.start is None else [self.start + dt.timedelta(days=i) for i in range(days)],
        )


class _CommandOptions(_Options):
    """`command`: program and arguments, run in the directory of the configuration; `output`: what it writes, on
    standard output, or in `output_file`, in the directory of the run."""

    command: list[str] = Field(min_length=1)
    output: Literal["json", "csv"] = "json"
    output_file: str | None = None

    def simulator(self, directory):
        table = {"json": Json, "csv": Csv}[self.output](self.output_file)
        return Command(self.command, table, working_directory=directory)


class _PythonOptions(_Options):
    """`function`: `module:function`, found beside the configuration or on Python's path."""

    function: str

    def simulator(self, directory):
        return PythonFunction(self.function, str(directory))


#: name -> options of the simulator
BLACK_BOXES: dict[str, type[_Options]] = {"command": _CommandOptions, "python": _PythonOptions}


def build_black_box(name: str, options: dict[str, Any], directory: Path) -> BlackBox:
    """A simulator from its options.

    **Raises:** `ConfigError`.
    """
    try:
        given = BLACK_BOXES[name].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        # Of the alternatives of a field, pydantic names the one it tried: no part of the file.
        field = ".".join(["model.options", *(str(x) for x in first["loc"][:2])])
        what = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{field}: {what}.") from error
    try:
        return given.build(directory)
    except ValueError as error:
        raise ConfigError(f"model.options: {error}") from error
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise ConfigError(f"model.options: {name} cannot be made ({type(error).__name__}: {error}).") from error
