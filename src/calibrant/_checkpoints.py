"""`Checkpoints`: all of an unfinished run, on disk, from which it goes on to the same bits."""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np

from calibrant._devices import gathered
from calibrant._files import atomic_path, check_arrays, named_arrays
from calibrant._jax import process_allgather
from calibrant._threefry import threefry2x32

SCHEMA = 2
_PLAIN = "plain"
#: Entries from which an array is known by a checksum, which never brings it to one place.
_LARGE = 2**16
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Checkpoints:
    """Checkpoints in a directory, for `calibrate(checkpoints=...)`.

    Each is one HDF5 file with checksums, which appears whole or not at all, also when the power fails: state of flow,
    optimiser and estimator, seed, best posterior, all records. `calibrate` goes on from the newest that can be read. A
    file lock is held meanwhile, so that no second process writes to the directory.

    **Arguments:** `directory`, made if it is not there; `every`, seconds between checkpoints at least; `keep`, how many
    of them.
    """

    def __init__(self, directory: "str | os.PathLike", *, every: float = 10.0, keep: int = 2):
        if keep < 1:
            raise ValueError(f"Checkpoints need `keep` of at least 1, got {keep}.")
        self.directory, self.every, self.keep = Path(directory), every, keep
        self._written = -float("inf")

    def __enter__(self) -> "Checkpoints":
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.directory)
        for left_over in self.directory.glob(".*.part"):  # of a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._lock.release()

    def latest(self) -> "Checkpoint | None":
        """The newest that can be read.

        **Raises:** `ValueError` if there are some and none can be, or if another version wrote them.
        """
        files = self._files()
        errors = []
        for path in reversed(files):
            try:
                return Checkpoint(path)
            except (OSError, KeyError, json.JSONDecodeError) as error:
                errors.append(f"{path.name}: {error}")
        if errors:
            raise ValueError(f"No checkpoint in {self.directory} can be read ({'; '.join(errors)}); start anew.")
        return None

    @property
    def due(self) -> bool:
        """Whether `every` seconds have passed since the last one."""
        return time.monotonic() - self._written >= self.every

    def write(self, update: int, facts: dict[str, Any], trees: dict[str, Any], plain: dict[str, np.ndarray]) -> None:
        """Write one, and remove the oldest.

        **Arguments:** `facts`, for JSON; `trees`, PyTrees by name, of which the JAX arrays are kept; `plain` arrays.

        **Raises:** `OSError` where it cannot be written; the ones before are then as they were.
        """
        arrays = {f"{key}/{name}": x for key, tree in trees.items() for name, x in named_arrays(tree)}
        arrays |= {f"{_PLAIN}/{name}": x for name, x in plain.items()}
        with atomic_path(self.directory / f"{update:010d}.h5") as part, h5py.File(part, "w") as file:
            file.attrs["schema"] = SCHEMA
            file.create_dataset("facts", data=np.frombuffer(json.dumps(facts).encode(), np.uint8), fletcher32=True)
            for name, x in arrays.items():
                x = np.asarray(x)
                file.create_dataset(name, data=x, **({"fletcher32": True} if x.size and x.ndim else {}))
        self._written = time.monotonic()
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.h5"))


class Checkpoint:
    """One of them, read: `facts`, and arrays by `tree` and `plain`."""

    def __init__(self, path: Path):
        self._path = path
        with h5py.File(path, "r") as file:
            if int(file.attrs.get("schema", -1)) != SCHEMA:
                raise ValueError(f"{path} was written by another version of calibrant; start anew.")
            self.facts: dict[str, Any] = json.loads(np.asarray(file["facts"]).tobytes())
            self._arrays: dict[str, dict[str, np.ndarray]] = {}
            for key in file:
                group = file[str(key)]
                if isinstance(group, h5py.Group):
                    self._arrays[str(key)] = {str(name): np.asarray(group[str(name)]) for name in group}

    def tree(self, name: str, like: Any) -> Any:
        """What was written under a name, in the structure of `like`.

        **Raises:** `ValueError` if the arrays are of other shapes.
        """
        return check_arrays(self._path, self._arrays[name], like)

    @property
    def plain(self) -> dict[str, np.ndarray]:
        """The plain arrays."""
        return self._arrays[_PLAIN]


def locked(directory: Path) -> Any:
    """A lock on a directory, released when the process ends, however it does.

    **Raises:** `ValueError` if another process holds it.
    """
    import filelock

    lock = filelock.FileLock(directory / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(f"Another process is running in {directory}; wait for it, or choose another place.") from None
    return lock


def fingerprint(tree: Any) -> str:
    """A digest of the structure, static settings and numbers of a PyTree, the same in every process."""
    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(tree)
    digest.update(_without_addresses(str(structure)))
    for leaf in leaves:
        if eqx.is_array_like(leaf):
            if isinstance(leaf, jax.Array) and leaf.size >= _LARGE:
                digest.update(f"{leaf.dtype}{leaf.shape}{np.asarray(_checksum(leaf))}".encode())
                continue
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                leaf = process_allgather(leaf, tiled=True)
            x = np.ascontiguousarray(leaf)
            digest.update(f"{x.dtype}{x.shape}".encode())
            digest.update(x.view(np.uint8).data)
        else:
            digest.update(_without_addresses(repr(leaf)))
    return digest.hexdigest()


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """64 bits of an array that may be divided over devices: a sum over entries of each mixed with its index."""
    x = x.ravel()
    bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
    high, low = (bits >> 32, bits) if x.dtype.itemsize == 8 else (jnp.uint32(0), bits)
    index = jnp.arange(x.shape[0], dtype=jnp.uint32)
    mixed = threefry2x32((index, high.astype(jnp.uint32)), (low.astype(jnp.uint32), jnp.uint32(0)))
    return gathered(jnp.stack([jnp.sum(m, dtype=jnp.uint32) for m in mixed]))


def _without_addresses(text: str) -> bytes:
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()
