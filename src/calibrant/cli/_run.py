"""Run directories: written whole, read back."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from calibrant._calibration import SCHEMA, Calibration
from calibrant._config import Config, ConfigError
from calibrant._files import load_arrays, write_text
from calibrant._problem import Problem
from calibrant.inference import Result
from calibrant.posteriors import Posterior
from calibrant.report import write_report


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Refuse, before anything runs, a directory that is in use, or that cannot be written."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / "manifest.json").is_file():
            raise ConfigError(f"{out} exists and is no run directory; choose another --out.")
        if not overwrite:
            raise ConfigError(f"{out} exists; choose another --out, or pass --overwrite.")
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    try:  # what will be done at the end, done now
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=f".{out.name}.", suffix=".part"))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror} in {nearest}); choose another --out.") from error


def write_run(
    out: Path, name: str, config: Config, text: str, directory: Path, problem: Problem, calibration: Calibration
) -> Path:
    """Write a run directory beside its place, move it there once it is whole, and add the report. Returns its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    try:
        manifest = {"config": json.loads(config.model_dump_json()), "config_directory": str(directory), "name": name}
        calibration.save(part, manifest)
        write_text(part / "config.toml", text)
        part.chmod(0o755)
        old = None
        if out.exists():
            old = out.with_name(f".{out.name}.{time.time_ns()}.old")
            os.replace(out, old)
        try:
            os.replace(part, out)
        except OSError:
            if old is not None:
                os.replace(old, out)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    # The result is safe from here on; an interrupted report can be written again.
    _report(out, name, config, text, directory, problem, calibration)
    return out / "report.html"


def _report(
    folder: Path, name: str, config: Config, text: str, directory: Path, problem: Problem, calibration: Calibration
) -> Path:
    about = {n: {"units": p.units, "description": p.description} for n, p in config.parameters.items()}
    truth: dict[str, float] = {}
    if config.data.synthetic is not None:
        params = problem.params.replace(config.data.synthetic.values)
        for n in problem.parameter_names:
            value = np.asarray(getattr(params, n))
            truth |= {n + "".join(f"[{i}]" for i in ix): float(value[ix]) for ix in np.ndindex(value.shape)}
    forecast = config.forecast(problem, directory)
    return write_report(
        folder / "report.html",
        problem,
        calibration,
        title=name,
        config=text,
        about=about,
        truth=truth,
        forecast=forecast,
    )


def read_run(folder: Path) -> tuple[str, Config, str, Problem, Calibration]:
    """A run directory: its name, configuration, text of it, problem and calibration.

    **Raises:** `ConfigError`.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        text = (folder / "config.toml").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        failures = folder / "failures.json"
        failed = json.loads(failures.read_text(encoding="utf-8")) if failures.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no run directory of calibrant ({error}).") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ConfigError(f"{folder} was written by another version of calibrant; run the calibration again.")
    missing = [
        key for key in ("config", "config_directory", "name", "seed", "result", "timings") if key not in manifest
    ]
    if missing:
        raise ConfigError(f"{folder}/manifest.json has no '{missing[0]}'; it was not written by calibrant.")
    config = Config.model_validate(manifest["config"])  # what ran: the text, and what the command line changed
    problem, prior, method = config.build(Path(manifest["config_directory"]))
    # The structure of the flow depends on the configuration alone; its arrays come from the file.
    skeleton = method.init(problem, prior, int(manifest["seed"])).posterior
    posterior = Posterior(prior, load_arrays(folder / "flow.h5", skeleton.flow))
    return manifest["name"], config, text, problem, _calibration(manifest, rows, posterior, failed)


_UPDATES = ("loss", "kl", "objective", "gradient_norm", "signal_to_noise", "failed")
#: What of the result in a manifest is no number of the evaluation.
_OUTCOME = ("code", "successful", "reason", "updates", "simulations", "failed_simulations")


def _calibration(manifest: dict[str, Any], rows: list[dict[str, Any]], posterior: Any, failed: Any) -> Calibration:
    result = manifest["result"]
    prefix = "evaluation_"
    names = [k for k in (rows[0] if rows else _UPDATES) if k != "update" and not k.startswith(prefix)]
    evaluated = [k for k in result if k not in _OUTCOME]
    history = [
        {"update": row["update"], **{k.removeprefix(prefix): _float(x) for k, x in row.items() if k.startswith(prefix)}}
        for row in rows
        if prefix + "objective" in row
    ]
    return Calibration(
        posterior=posterior,
        result=Result(result["code"]),
        reason=result["reason"],
        evaluation={k: _float(result[k]) for k in evaluated},
        history=history,
        updates={name: np.array([_float(row[name]) for row in rows]) for name in names},
        failures={name: np.asarray(x) for name, x in failed.items()},
        n_simulations=result["simulations"],
        n_failed=result["failed_simulations"],
        seed=manifest["seed"],
        timings=manifest["timings"],
        plan=manifest.get("plan"),
        gradient_check=manifest.get("gradient_check"),
        signatures=manifest.get("signatures", []),
        method=manifest.get("method", "GVI"),
        diagnostics=manifest.get("diagnostics", {}),
    )


def _float(x: float | None) -> float:
    return float("nan") if x is None else float(x)


def report_again(folder: Path) -> Path:
    """Write the report of a run directory anew."""
    name, config, text, problem, calibration = read_run(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    directory = Path(manifest["config_directory"])
    return _report(folder, name, config, text, directory, problem, calibration)
