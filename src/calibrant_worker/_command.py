"""An external program as a simulator."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibrant_worker._run import AbstractSimulator, RunFailed
from calibrant_worker._tables import AbstractTable, Json

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_OWN = ("seed", "directory", "parameters")
#: Characters of standard error that are kept, from its end.
_KEPT = 20_000
#: Seconds to wait for the pipes of a program that was killed.
_GRACE = 5.0


class Command(AbstractSimulator):
    """Run a program once for every simulation, without a shell.

    It is given its parameters in any of three ways: as arguments, through placeholders; as JSON on standard input,
    `{"parameters": {"beta": 0.5, "rates": [0.1, 0.2]}, "seed": 12}`; as the same JSON in a file. It ends with exit code
    0.

    **Arguments:**

    - `arguments`: the program and its arguments. `{NAME}` stands for a parameter (an array as `0.1,0.2`), `{seed}` for
      the seed, from 0 to 2^31 - 1, `{directory}` for a directory of this run, removed afterwards, and `{parameters}`
      for the path of the JSON file, which lies there. Other braces are left alone.
    - `output`: `Json()` or `Csv()`, on standard output, or in a file of `{directory}`: `Csv("out.csv")`.
    - `working_directory`: the current one by default.

    After `timeout` the program and all it started are killed (its process group; on Windows the program alone).

    **Raises:** `ValueError` for a program that is not there and for placeholders that stand for nothing.
    """

    prefers = "threads"

    def __init__(self, arguments: Sequence[str], output: AbstractTable | None = None, working_directory: Any = None):
        if isinstance(arguments, str) or not arguments or not all(isinstance(a, str) for a in arguments):
            raise ValueError(f"A command is a list of strings, ['program', 'argument'], got {arguments!r}.")
        self._arguments = tuple(arguments)
        self._output = Json() if output is None else output
        self._working_directory = None if working_directory is None else str(working_directory)

    def check(self, parameters):
        for name in parameters:
            if name in _OWN:
                raise ValueError(f"A parameter of a command cannot be called '{name}', which is a placeholder.")
        for argument in self._arguments:
            for name in _PLACEHOLDER.findall(argument):
                if name not in (*parameters, *_OWN):
                    known = ", ".join((*parameters, *_OWN))
                    raise ValueError(
                        f"The command has a placeholder {{{name}}}, and there are {known}; "
                        f"if it is none, write {{ {name} }}."
                    )
        program = self._arguments[0]
        if not _PLACEHOLDER.search(program):
            folder = Path(self._working_directory or ".")
            found = shutil.which(program) if os.path.basename(program) == program else shutil.which(folder / program)
            if found is None:
                raise ValueError(f"There is no program '{program}' that can be run; give its path, or install it.")

    def run(self, params, seed, shapes, timeout):
        given = json.dumps({"parameters": {k: np.asarray(v).tolist() for k, v in params.items()}, "seed": seed})
        words = {name: _as_text(value) for name, value in params.items()} | {"seed": str(seed)}
        with contextlib.ExitStack() as stack:
            if self._needs_directory():
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="calibrant-run-"))
                path = Path(directory, "parameters.json")
                path.write_text(given, encoding="utf-8")
                words |= {"directory": directory, "parameters": str(path)}
            arguments = [_PLACEHOLDER.sub(lambda m: words.get(m[1], m[0]), a) for a in self._arguments]
            written = self._call(arguments, given, timeout)
            if self._output.file is not None:
                written = _read(Path(words["directory"], self._output.file))
        return self._output.parse(written, shapes)

    def _needs_directory(self) -> bool:
        """Making one takes as long as starting a small program."""
        used = {name for argument in self._arguments for name in _PLACEHOLDER.findall(argument)}
        return self._output.file is not None or bool(used & {"directory", "parameters"})

    def _call(self, arguments: list[str], given: str, timeout: float | None) -> str:
        """Standard output of a program that ended well."""
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._working_directory,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise RunFailed(f"{arguments[0]} cannot be started ({error.strerror or error})") from error
        with process:
            try:
                out, errors = process.communicate(given, timeout)
            except subprocess.TimeoutExpired:
                _kill(process)
                _, errors = _rest(process)
                raise RunFailed(
                    f"{arguments[0]} took more than {timeout:g} s and was killed", errors[-_KEPT:]
                ) from None
            except BaseException:
                _kill(process)
                raise
        if process.returncode != 0:
            said = errors.strip().splitlines()
            why = f": {said[-1][:300]}" if said else ""
            raise RunFailed(f"{arguments[0]} ended with exit code {process.returncode}{why}", errors[-_KEPT:])
        return out


def _as_text(value: Any) -> str:
    """Shortest digits that give the same number back."""
    return ",".join(repr(float(x)) for x in np.ravel(value))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFailed(f"the program wrote no {path.name} that can be read ({type(error).__name__})") from error


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _rest(process: subprocess.Popen) -> tuple[str, str]:
    """What a killed program had written. A child that left the process group may hold the pipes open: not for ever."""
    try:
        return process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "", ""
