"""Simulators that are not written in JAX: Python callables and external programs as models."""

from calibrant.black_box._executor import AbstractExecutor as AbstractExecutor
from calibrant.black_box._executor import Joblib as Joblib
from calibrant.black_box._failures import Failure as Failure
from calibrant.black_box._model import BlackBox as BlackBox
from calibrant.black_box._torch import TorchModel as TorchModel
from calibrant_worker import AbstractSimulator as AbstractSimulator
from calibrant_worker import AbstractTable as AbstractTable
from calibrant_worker import Command as Command
from calibrant_worker import Csv as Csv
from calibrant_worker import Json as Json
from calibrant_worker import PythonFunction as PythonFunction
from calibrant_worker import RunFailed as RunFailed
