"""What is kept of runs that went wrong."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from calibrant._files import write_text

_log = logging.getLogger("calibrant")


#: Parameters, seed, message in one line, and details.
Failed = tuple[dict[str, Any], int, str, str]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that went wrong.

    `params` and `seed`: what it was given; `message`: what went wrong, in one line; `details`: the end of the
    program's standard error, or the traceback; `file`: where that lies, if it was kept.
    """

    params: dict[str, Any]
    seed: int
    message: str
    details: str
    file: Path | None


class Failures:
    """Counts runs and those that went wrong, and keeps the first of these."""

    def __init__(self, directory: Path | None, most: int):
        self._directory, self._most = directory, most
        self.runs = 0
        self.failed = 0
        self.gradients_failed = 0
        self._first_gradient = ""
        self.kept: list[Failure] = []

    def add(self, runs: int, failed: list[Failed]) -> None:
        """After a batch: how many runs, and those that went wrong."""
        first = self.failed == 0
        self.runs += runs
        self.failed += len(failed)
        self._keep(failed)
        if first and failed:
            _log.warning("%s Their outputs are NaN, which the loss leaves out.", self.sentence())

    def add_gradients(self, failed: list[Failed]) -> None:
        """After a batch of gradients: those of runs that were made and could not be differentiated."""
        if failed and not self.gradients_failed:
            self._first_gradient = failed[0][2]
            _log.warning("Gradients fail: %s. They are NaN and left out.", self._first_gradient)
        self.gradients_failed += len(failed)
        self._keep(failed)

    def _keep(self, failed: list[Failed]) -> None:
        for params, seed, message, details in failed[: max(0, self._most - len(self.kept))]:
            self.kept.append(Failure(params, seed, message, details, self._write(params, seed, message, details)))

    def sentence(self) -> str:
        """How many failed, and the first; empty if none did."""
        return " ".join(part for part in (self._of_runs(), self._of_gradients()) if part)

    def _of_gradients(self) -> str:
        if not self.gradients_failed:
            return ""
        return f"{self.gradients_failed} gradients failed; the first: {self._first_gradient}."

    def _of_runs(self) -> str:
        if not self.failed:
            return ""
        message, where = "", "keep_errors_in keeps the errors of such runs"
        if self.kept:
            message = f"; the first: {self.kept[0].message}"
            where = where if self.kept[0].file is None else f"see {self.kept[0].file}"
        return f"{self.failed} of {self.runs} runs failed{message} ({where})."

    def _write(self, params: dict[str, Any], seed: int, message: str, details: str) -> Path | None:
        if self._directory is None:
            return None
        given = json.dumps({"parameters": {k: np.asarray(v).tolist() for k, v in params.items()}, "seed": seed})
        path = self._directory / f"failed-{hashlib.blake2b(given.encode(), digest_size=6).hexdigest()}.txt"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_text(path, f"{given}\n{message}\n\n{details}\n")
        except OSError as error:
            _log.warning("The error of a run cannot be kept in %s (%s).", self._directory, error.strerror)
            return None
        return path
