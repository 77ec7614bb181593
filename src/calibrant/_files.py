"""Files that are written whole or not at all, and arrays in them that cannot run code."""

import os
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax
import numpy as np
from jaxtyping import Array

SCHEMA = 1


class atomic_path:
    """Context manager: write to a temporary file beside the target, which replaces it once all went well."""

    def __init__(self, target: Path):
        self._target = Path(target)

    def __enter__(self) -> Path:
        if not self._target.parent.is_dir():
            raise FileNotFoundError(f"{self._target} cannot be written: there is no folder {self._target.parent}.")
        handle, name = tempfile.mkstemp(dir=self._target.parent, prefix=f".{self._target.name}.", suffix=".part")
        os.close(handle)
        self._part = Path(name)
        return self._part

    def __exit__(self, kind, value, traceback):
        if kind is None:
            with open(self._part, "rb") as handle:
                os.fsync(handle.fileno())
            os.chmod(self._part, 0o644)
            try:
                os.replace(self._part, self._target)
            except OSError:
                self._part.unlink(missing_ok=True)
                raise
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:  # the name, too, is to outlive a power failure
                os.fsync(folder)
            finally:
                os.close(folder)
        else:
            self._part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def save_arrays(path: Path, tree: Any) -> None:
    """Save the arrays of a PyTree to HDF5, by their path in it. Nothing is pickled."""
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = SCHEMA
        for name, leaf in named_arrays(tree):
            file.create_dataset(name, data=np.asarray(leaf))


def load_arrays(path: Path, like: Any) -> Any:
    """Read what `save_arrays` wrote into the structure of `like`.

    **Raises:** `ValueError` if the file holds other arrays than `like`.
    """
    try:
        with h5py.File(path, "r") as file:
            if int(file.attrs.get("schema", -1)) != SCHEMA:
                raise ValueError(f"{path} was written by another version of calibrant; run the calibration again.")
            stored = {str(name): np.asarray(file[str(name)]) for name in file}
    except OSError as error:
        raise ValueError(f"{path} is no readable HDF5 file ({error}).") from error
    return check_arrays(path, stored, like)


def check_arrays(path: Path, stored: dict[str, np.ndarray], like: Any) -> Any:
    """Arrays by name in the structure of `like`.

    **Raises:** `ValueError` if they are others than those of `like`.
    """
    wanted = named_arrays(like)
    if {(n, x.shape) for n, x in wanted} != {(n, x.shape) for n, x in stored.items()}:
        raise ValueError(f"{path} holds another flow or prior than its manifest describes; it cannot be loaded.")
    leaves = iter([jax.numpy.asarray(stored[name], dtype=leaf.dtype) for name, leaf in wanted])
    return jax.tree.map(lambda x: next(leaves) if eqx.is_array(x) else x, like)


def named_arrays(tree: Any) -> list[tuple[str, Array]]:
    """Arrays of a PyTree with their paths in it, as names in HDF5."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path).replace("/", "|"), x) for path, x in leaves if eqx.is_array(x)]
