"""What the workers of `calibrant.black_box` need: NumPy and the standard library.

It is a package of its own so that a worker process loads neither JAX nor the rest of Calibrant, which would take it
seconds and hundreds of megabytes. Its public names are those of `calibrant.black_box`.
"""

from calibrant_worker._command import Command as Command
from calibrant_worker._function import PythonFunction as PythonFunction
from calibrant_worker._run import AbstractSimulator as AbstractSimulator
from calibrant_worker._run import Outcome as Outcome
from calibrant_worker._run import RunFailed as RunFailed
from calibrant_worker._run import Shapes as Shapes
from calibrant_worker._run import attempt as attempt
from calibrant_worker._run import checked_outputs as checked_outputs
from calibrant_worker._run import numbered as numbered
from calibrant_worker._tables import AbstractTable as AbstractTable
from calibrant_worker._tables import Csv as Csv
from calibrant_worker._tables import Json as Json
