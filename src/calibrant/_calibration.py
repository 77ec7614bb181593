"""`Calibration`: what a calibration gives back, and how it is saved and read."""

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from calibrant._files import atomic_path, save_arrays, write_text
from calibrant._prior import Prior
from calibrant.inference import Result
from calibrant.posteriors import Posterior

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The outcome of `calibrate`.

    `posterior` is the result: of GVI the flow that did best on the fixed evaluation set; `evaluation` its objective on
    a fresh one. `history` lists the evaluations, `updates` the records of all updates (arrays by name). Of `n_values`
    parameter values that were simulated, `n_failed` gave something that is not finite: `failures` holds them,
    `successes` a sample of the others. `plan` is what `AutoMode` looked at and chose, `gradient_check` the ratio of the
    gradient to differences at the start by parameter (`None` where they were all noise), `signatures` the signs of
    failure that were seen (`inference.Signature`). `method` is the name of the class of the method, `diagnostics` what
    it says of its result besides (R-hat of chains, a tolerance, eigenvalues of a Hessian).
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
    plan: dict[str, Any] | None = None
    gradient_check: dict[str, Any] | None = None
    signatures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    successes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    n_values: int = 0
    method: str = "GVI"
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)

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
        """Draws of posterior and prior, as an `arviz.InferenceData` with these two groups.

        Of a posterior made of Markov chains these are the chains themselves, with their order, evenly thinned to at
        most `draws` in all; of another there is one chain of independent draws. The prior has as many.
        """
        with warnings.catch_warnings():  # ArviZ announces its refactoring on import
            warnings.simplefilter("ignore")
            import arviz as az
        posterior = self.posterior.chains(draws)
        if posterior is None:
            posterior = {name: x[None] for name, x in self.posterior.sample(key, draws).items()}
        n = math.prod(next(iter(posterior.values())).shape[:2])
        prior = self.prior.sample(jax.random.key(key), n)
        return az.from_dict(
            posterior={name: np.asarray(x) for name, x in posterior.items()},
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
            for kind, values in (("failures", self.failures), ("successes", self.successes)):
                lists = {name: np.asarray(x).tolist() for name, x in values.items()}
                write_text(directory / f"{kind}.json", json.dumps(lists) + "\n")
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
                "values": self.n_values,
            },
            "posterior": {
                name: {"q05": q[0].tolist(), "median": q[1].tolist(), "q95": q[2].tolist()}
                for name, q in self.quantiles().items()
            },
            "timings": {k: round(v, 3) for k, v in self.timings.items()},
            "versions": versions(),
            "device": str(jax.devices()[0]),
            "plan": self.plan,
            "gradient_check": self.gradient_check,
            "signatures": self.signatures,
            "method": self.method,
            "diagnostics": self.diagnostics,
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
