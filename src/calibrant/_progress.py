"""Progress of a long job on a terminal, with an estimate of the time left."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from calibrant._processes import is_first


class AbstractProgress(abc.ABC):
    """What `calibrate` reports to: a context manager that is told of updates."""

    @abc.abstractmethod
    def __enter__(self) -> Any:
        """Start reporting."""

    @abc.abstractmethod
    def __exit__(self, *exc: Any) -> None:
        """Stop reporting."""

    @abc.abstractmethod
    def advance(self, updates: int, message: str) -> None:
        """So many more updates are done; `message` sums up where it stands."""

    @abc.abstractmethod
    def note(self, what: Any) -> None:
        """Something to be read once: text, or anything that `rich` prints."""


class NoProgress(AbstractProgress):
    """Silence."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def advance(self, updates: int, message: str) -> None:
        pass

    def note(self, what: Any) -> None:
        pass


class TerminalProgress(AbstractProgress):
    """A bar with the time left on a terminal; a line now and then where standard error is no terminal.

    Of several processes only the first shows anything.
    """

    def __init__(self, total: int, title: str = "Calibrating", unit: str = "updates"):
        self._unit = unit
        self._total = total
        self._title = title
        self._console = Console(stderr=True, quiet=not is_first())
        self._done = 0
        self._printed = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Any:
        self._bar.__enter__()
        self._task = self._bar.add_task(self._title, total=self._total, message="compiling")
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.__exit__(*exc)

    def note(self, what: Any) -> None:
        self._console.print(what, soft_wrap=True)

    def advance(self, updates: int, message: str) -> None:
        self._done += updates
        self._bar.update(self._task, advance=updates, message=message)
        if not self._console.is_terminal and (
            self._done - self._printed >= self._total / 10 or self._done == self._total
        ):
            self._printed = self._done
            left = self._bar.tasks[self._task].time_remaining
            after = "" if left is None else f", about {left:.0f} s left"
            self._console.print(
                f"{self._title}: {self._done} of {self._total} {self._unit}, {message}{after}", soft_wrap=True
            )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table to note."""
    out = Table(*columns, title=title, title_justify="left")
    for row in rows:
        out.add_row(*row)
    return out
