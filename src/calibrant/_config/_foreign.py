"""Other simulators: a command, a Python function, or one in PyTorch."""

import abc
import datetime as dt
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, ValidationError

from calibrant._config._error import ConfigError
from calibrant._config._schema import Count, Strict
from calibrant._model import parameter
from calibrant.black_box import AbstractSimulator, BlackBox, Command, Csv, Joblib, Json, PythonFunction, TorchModel
from calibrant.black_box._foreign import AbstractForeignModel


class _Parameter(Strict):
    """A parameter of the simulator. Its prior stands in `[parameters]`, as that of any model."""

    default: float | list[float]
    units: str = ""
    description: str = ""


class _Options(Strict, abc.ABC):
    """Options of all: `parameters` and `outputs` of the simulator; see `BlackBox`.

    `start`: the date of the first output, where outputs are daily.
    """

    parameters: dict[str, float | list[float] | _Parameter] = Field(min_length=1)
    outputs: dict[str, Count | list[Count]] = Field(min_length=1)
    keep_errors_in: str | None = None
    start: dt.date | None = None

    @abc.abstractmethod
    def build(self, directory: Path) -> AbstractForeignModel:
        """The model; relative paths are taken from `directory`."""

    def common(self, directory: Path) -> dict[str, Any]:
        """What every model is made with."""
        described: dict[str, Any] = {}
        for name, given in self.parameters.items():
            p = given if isinstance(given, _Parameter) else _Parameter(default=given)
            described[name] = parameter(p.default, units=p.units, description=p.description)
        shapes = {name: (x,) if isinstance(x, int) else tuple(x) for name, x in self.outputs.items()}
        days = max(shape[0] for shape in shapes.values() if shape) if any(shapes.values()) else 0
        return {
            "parameters": described,
            "outputs": shapes,
            "keep_errors_in": None if self.keep_errors_in is None else directory / self.keep_errors_in,
            "dates": None if self.start is None else [self.start + dt.timedelta(days=i) for i in range(days)],
        }


class _BlackBoxOptions(_Options, abc.ABC):
    """How runs are handed to workers; see `BlackBox`."""

    workers: Count | None = None
    timeout: PositiveFloat | None = None
    retries: NonNegativeInt = 0

    @abc.abstractmethod
    def simulator(self, directory: Path) -> AbstractSimulator:
        """What makes a run."""

    def build(self, directory):
        return BlackBox(
            self.simulator(directory),
            executor=Joblib(self.workers),
            timeout=self.timeout,
            retries=self.retries,
            **self.common(directory),
        )


class _CommandOptions(_BlackBoxOptions):
    """`command`: program and arguments, run in the directory of the configuration; `output`: what it writes, on
    standard output, or in `output_file`, in the directory of the run."""

    command: list[str] = Field(min_length=1)
    output: Literal["json", "csv"] = "json"
    output_file: str | None = None

    def simulator(self, directory):
        table = {"json": Json, "csv": Csv}[self.output](self.output_file)
        return Command(self.command, table, working_directory=directory)


class _PythonOptions(_BlackBoxOptions):
    """`function`: `module:function`, found beside the configuration or on Python's path."""

    function: str

    def simulator(self, directory):
        return PythonFunction(self.function, str(directory))


class _TorchOptions(_Options):
    """`function`: `module:function`, found beside the configuration or on Python's path; see `TorchModel`."""

    function: str
    device: str = "cpu"

    def build(self, directory):
        run = PythonFunction(self.function, str(directory)).function()
        return TorchModel(run, device=self.device, **self.common(directory))


#: name -> options of the simulator
FOREIGN: dict[str, type[_Options]] = {"command": _CommandOptions, "python": _PythonOptions, "torch": _TorchOptions}


def build_foreign(name: str, options: dict[str, Any], directory: Path) -> AbstractForeignModel:
    """A simulator from its options.

    **Raises:** `ConfigError`.
    """
    try:
        given = FOREIGN[name].model_validate(options)
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
