"""`Calibration`: what a calibration gives back, and how it is saved and read."""

import dataclasses
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax
import numpy as np
from jaxtyping import Array

from calibrant._prior import Prior
from calibrant.inference import Result
from calibrant.posteriors import Posterior

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The outcome of `calibrate`.

    `posterior` is the flow that did best on the fixed evaluation set; `evaluation` its objective on a fresh one.
    `history` lists the evaluations, `updates` the records of all updates (arrays by name), `failures` the parameter
    values at which simulations were not finite.
    """

    posterior: Posterior
    result: Result
    reason: str
    evaluation: dict[str, Any]
    history: list[dict[str, Any]]
    updates: dict[str, np.ndarray]
    failures: dict[str, np.ndarray]
    n_simulations: int
    n_failed: int
    seed: int
    timings: dict[str, float]

    @property
    def prior(self) -> Prior:
        """The prior it started from."""
        return self.posterior.prior

    def sample(self, key: "Array | int", n: int) -> dict[str, Array]:
        """`n` draws of the posterior: name -> array of shape (n, *shape)."""
        return self.posterior.sample(key, n)

    def log_prob(self, values: Mapping[str, Array]) -> Array:
        """Log-density of the posterior at one point."""
        return self.posterior.log_prob(values)

    def quantiles(self, probabilities=(0.05, 0.5, 0.95), *, key: "Array | int" = 0, n: int = 10_000):
        """Name -> quantiles, shape (len(probabilities), *shape)."""
        return self.posterior.quantiles(probabilities, key=key, n=n)

    def to_arviz(self, draws: int = 4000, key: int = 0) -> Any:
        """Draws of posterior and prior, as an `arviz.InferenceData` with these two groups."""
        with warnings.catch_warnings():  # ArviZ announces its refactoring on import
            warnings.simplefilter("ignore")
            import arviz as az
        posterior = self.posterior.sample(key, draws)
        prior = self.prior.sample(jax.random.key(key), draws)
        return az.from_dict(
            posterior={name: np.asarray(x)[None] for name, x in posterior.items()},
            prior={name: np.asarray(x)[None] for name, x in prior.items()},
            attrs={"seed": self.seed, "result": self.result.value},
        )

    def save(self, directory: "str | os.PathLike", manifest: Mapping[str, Any] | None = None) -> Path:
        """Write a run directory: `posterior.nc`, `flow.h5`, `manifest.json`, `metrics.jsonl`.

        Each file is whole or absent. `manifest` is added to what is always recorded: seed, versions, timings, result.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        data = self.to_arviz()
        with atomic_path(directory / "posterior.nc") as path:
            data.to_netcdf(str(path), engine="h5netcdf")
        with atomic_path(directory / "flow.h5") as path:
            save_arrays(path, self.posterior.flow)  # the prior is in the configuration
        write_text(directory / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.metrics()))
        if self.failures:
            failures = {name: np.asarray(x).tolist() for name, x in self.failures.items()}
            write_text(directory / "failures.json", json.dumps(failures) + "\n")
        write_text(directory / "manifest.json", json.dumps({**self.describe(), **(manifest or {})}, indent=2) + "\n")
        return directory

    def metrics(self) -> list[dict[str, Any]]:
        """One row an update, with the evaluation where there was one."""
        by_update = {int(row["update"]): row for row in self.history}
        rows = []
        for i in range(len(self.updates["loss"])):
            row = {"update": i + 1, **{name: _number(x[i]) for name, x in self.updates.items()}}
            if i + 1 in by_update:
                row |= {f"evaluation_{k}": _number(v) for k, v in by_update[i + 1].items() if k != "update"}
            rows.append(row)
        return rows

    def describe(self) -> dict[str, Any]:
        """What the manifest always holds."""
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "result": {
                "code": self.result.value,
                "successful": self.result.successful,
                "reason": self.reason,
                **{k: _number(v) for k, v in self.evaluation.items()},
                "updates": len(self.updates["loss"]),
                "simulations": self.n_simulations,
                "failed_simulations": self.n_failed,
            },
            "posterior": {
                name: {"q05": q[0].tolist(), "median": q[1].tolist(), "q95": q[2].tolist()}
                for name, q in self.quantiles().items()
            },
            "timings": {k: round(v, 3) for k, v in self.timings.items()},
            "versions": versions(),
            "device": str(jax.devices()[0]),
        }


def _number(x: Any) -> float | None:
    """A JSON number; `None` for what JSON has none for."""
    value = float(x)
    return value if np.isfinite(value) else None


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import platform
    from importlib.metadata import version

    packages = ("calibrant", "jax", "jaxlib", "equinox", "flowjax", "numpyro", "optax", "numpy")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


class atomic_path:
    """Context manager: write to a temporary file beside the target, which replaces it once all went well."""

    def __init__(self, target: Path):
        self._target = Path(target)

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self._target.parent, prefix=f".{self._target.name}.", suffix=".part")
        os.close(handle)
        self._part = Path(name)
        return self._part

    def __exit__(self, kind, value, traceback):
        if kind is None:
            with open(self._part, "rb") as handle:
                os.fsync(handle.fileno())
            os.chmod(self._part, 0o644)
            os.replace(self._part, self._target)
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
        for name, leaf in _named_arrays(tree):
            file.create_dataset(name, data=np.asarray(leaf))


def load_arrays(path: Path, like: Any) -> Any:
    """Read what `save_arrays` wrote into the structure of `like`.

    **Raises:** `ValueError` if the file holds other arrays than `like`.
    """
    try:
        with h5py.File(path, "r") as file:
            if int(file.attrs.get("schema", -1)) != SCHEMA:
                raise ValueError(f"{path} was written by another version of calibrant; run the calibration again.")
            stored = {name: np.asarray(file[name]) for name in file}
    except OSError as error:
        raise ValueError(f"{path} is no readable HDF5 file ({error}).") from error
    wanted = _named_arrays(like)
    if {(n, x.shape) for n, x in wanted} != {(n, x.shape) for n, x in stored.items()}:
        raise ValueError(f"{path} holds another flow or prior than its manifest describes; it cannot be loaded.")
    leaves = iter([jax.numpy.asarray(stored[name], dtype=leaf.dtype) for name, leaf in wanted])
    return jax.tree.map(lambda x: next(leaves) if eqx.is_array(x) else x, like)


def _named_arrays(tree: Any) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path).replace("/", "|"), x) for path, x in leaves if eqx.is_array(x)]
