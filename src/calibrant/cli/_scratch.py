"""Where processes that are not the first write: what only one may keep, they throw away."""

import tempfile
from pathlib import Path

from calibrant._processes import is_first

_scratches: list[tempfile.TemporaryDirectory] = []


def scratch() -> Path:
    """A new directory that is removed at the end."""
    _scratches.append(tempfile.TemporaryDirectory(prefix="calibrant-"))
    return Path(_scratches[-1].name)


def own(path: Path) -> Path:
    """`path`, for the first process; for others a path of that name in a directory that is thrown away."""
    return path if is_first() else scratch() / path.name


def remove_scratch() -> None:
    """Throw away what this process wrote for nobody."""
    while _scratches:
        _scratches.pop().cleanup()
