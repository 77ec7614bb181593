"""Progress of a long job on a terminal, with an estimate of the time left."""

from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class AbstractProgress(Protocol):
    """What `calibrate` reports to: any object with these methods."""

    def __enter__(self) -> Self:
        """Start reporting."""
        ...

    def __exit__(self, *exc: object) -> None:
        """Stop reporting."""
        ...

    def advance(self, updates: int, message: str) -> None:
        """So many more updates are done; `message` sums up where it stands."""
        ...


class NoProgress:
    """Silence."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, updates: int, message: str) -> None:
        pass


class TerminalProgress:
    """A bar with the time left on a terminal; a line now and then where standard error is no terminal."""

    def __init__(self, total: int, title: str = "Calibrating"):
        self._total = total
        self._title = title
        self._console = Console(stderr=True)
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

    def __enter__(self) -> Self:
        self._bar.__enter__()
        self._task = self._bar.add_task(self._title, total=self._total, message="compiling")
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.__exit__(*exc)  # pyright: ignore[reportArgumentType]

    def advance(self, updates: int, message: str) -> None:
        self._done += updates
        self._bar.update(self._task, advance=updates, message=message)
        if not self._console.is_terminal and (self._done - self._printed >= self._total / 10 or self._done == self._total):
            self._printed = self._done
            left = self._bar.tasks[self._task].time_remaining
            after = "" if left is None else f", about {left:.0f} s left"
            self._console.print(f"{self._title}: {self._done} of {self._total} updates, {message}{after}", soft_wrap=True)
