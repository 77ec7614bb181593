"""What an external program writes: numbers as JSON or CSV, on standard output or in a file."""

import abc
import csv
import io
import json
from typing import Any

import numpy as np

from calibrant_worker._run import RunFailed, Shapes


class AbstractTable(abc.ABC):
    """A format. `file`: its name in the directory of the run; standard output if `None`."""

    def __init__(self, file: str | None = None):
        self.file = file

    @abc.abstractmethod
    def parse(self, text: str, shapes: Shapes) -> Any:
        """Name -> numbers, or the numbers where the one output has no name.

        **Raises:** `RunFailed`.
        """


class Json(AbstractTable):
    """An object, `{"infected": [1, 2, 4]}`, with nested lists for arrays; one output without a name: its list."""

    def parse(self, text, shapes):
        try:
            return json.loads(text)
        except ValueError as error:
            raise RunFailed(f"what the program wrote is no JSON ({error})", text) from error


class Csv(AbstractTable):
    """A header and rows. An output of shape (rows,) is the column of its name, the second axis of one of shape
    (rows, k) the columns `name[0]`, ..., `name[k - 1]`; one output without a name has the first column. Blanks at the
    end of a column are left out."""

    def parse(self, text, shapes):
        try:
            header, *rows = [row for row in csv.reader(io.StringIO(text)) if row]
        except (ValueError, csv.Error) as error:
            raise RunFailed("what the program wrote is no CSV with a header", text) from error
        columns = {name.strip(): [row[i].strip() for row in rows if i < len(row)] for i, name in enumerate(header)}

        def column(name: str) -> list[float]:
            if name not in columns:
                raise RunFailed(f"there is no column '{name}'; the program wrote {', '.join(columns)}", text)
            entries = columns[name]
            while entries and not entries[-1]:
                entries.pop()
            try:
                return [float(x) for x in entries]
            except ValueError as error:
                raise RunFailed(f"column '{name}' holds what is no number ({error})", text) from error

        if "" in shapes:
            return column(header[0].strip())
        out: dict[str, Any] = {}
        for name, shape in shapes.items():
            if len(shape) == 1:
                out[name] = column(name)
            else:
                parts = [column(f"{name}[{i}]") for i in range(int(np.prod(shape[1:])))]
                if len({len(part) for part in parts}) != 1:
                    raise RunFailed(f"the columns of '{name}' are not of the same length", text)
                out[name] = np.array(parts).T.reshape(-1, *shape[1:])
        return out
