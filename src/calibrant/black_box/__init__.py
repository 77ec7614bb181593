"""Simulators that are not written in JAX: Python callables and external programs as models."""

from calibrant.black_box._command import Command as Command
from calibrant.black_box._executor import AbstractExecutor as AbstractExecutor
from calibrant.black_box._executor import Joblib as Joblib
from calibrant.black_box._failures import Failure as Failure
from calibrant.black_box._function import PythonFunction as PythonFunction
from calibrant.black_box._model import BlackBox as BlackBox
from calibrant.black_box._tables import AbstractTable as AbstractTable
from calibrant.black_box._tables import Csv as Csv
from calibrant.black_box._tables import Json as Json
from calibrant.black_box._worker import AbstractSimulator as AbstractSimulator
from calibrant.black_box._worker import RunFailed as RunFailed
