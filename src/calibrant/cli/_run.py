"""Run directories, read back, and their reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from calibrant._calibration import SCHEMA, Calibration
from calibrant._config import Config, ConfigError
from calibrant._files import load_arrays
from calibrant._problem import Problem
from calibrant.checks import PICTURES as CHECK_PICTURES
from calibrant.checks import SCHEMA as CHECK_SCHEMA
from calibrant.cli._scratch import own
from calibrant.inference import Result
from calibrant.posteriors import Posterior
from calibrant.report import write_report


def report_of(
    folder: Path,
    name: str,
    config: Config,
    text: str,
    directory: Path,
    problem: Problem,
    calibration: Calibration,
    *,
    out: Path | None = None,
) -> Path:
    """Write the report of a run into its directory, or to `out`."""
    about = {n: {"units": p.units, "description": p.description} for n, p in config.parameters.items()}
    truth: dict[str, float] = {}
    if config.data.synthetic is not None:
        params = problem.params.replace(config.data.synthetic.values)
        for n in problem.parameter_names:
            value = np.asarray(getattr(params, n))
            truth |= {n + "".join(f"[{i}]" for i in ix): float(value[ix]) for ix in np.ndindex(value.shape)}
    forecast = config.forecast(problem, directory)
    return write_report(
        folder / "report.html" if out is None else out,
        problem,
        calibration,
        title=name,
        config=text,
        about=about,
        truth=truth,
        forecast=forecast,
        check=_check_of(folder),
    )


def names_run(target: str) -> bool:
    """Whether it is the directory of a run, whole or not."""
    path = Path(target)
    return path.is_dir() or (path.name != "" and path.with_name(path.name + ".unfinished").is_dir())


def _check_of(folder: Path) -> dict[str, Any] | None:
    """What `calibrant check` left in a run directory, with its pictures; `None` if there is nothing."""
    path = folder / "check.json"
    if not path.is_file():
        return None
    try:
        check = json.loads(path.read_text(encoding="utf-8"))
        if check["schema"] != CHECK_SCHEMA:
            return None
        pictures = {name: folder / f"check-{name}.png" for name in CHECK_PICTURES}
        check["pictures"] = {name: p.read_bytes() for name, p in pictures.items() if p.is_file()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no check of calibrant ({error}); run `calibrant check` again.") from error
    return check


def read_run(folder: Path) -> tuple[str, Config, str, Problem, Calibration]:
    """A run directory: its name, configuration, text of it, problem and calibration.

    **Raises:** `ConfigError`.
    """
    if not folder.exists() and folder.with_name(folder.name + ".unfinished").exists():
        raise ConfigError(f"{folder} is not whole; go on with `calibrant calibrate --resume {folder}`.")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        text = (folder / "config.toml").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        failures = folder / "failures.json"
        failed = json.loads(failures.read_text(encoding="utf-8")) if failures.is_file() else {}
        successes = folder / "successes.json"
        finite = json.loads(successes.read_text(encoding="utf-8")) if successes.is_file() else {}
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
    return manifest["name"], config, text, problem, _calibration(manifest, rows, posterior, failed, finite)


_UPDATES = ("loss", "kl", "objective", "gradient_norm", "signal_to_noise", "failed")
#: What of the result in a manifest is no number of the evaluation.
_OUTCOME = ("code", "successful", "reason", "updates", "simulations", "failed_simulations", "values")


def _calibration(
    manifest: dict[str, Any], rows: list[dict[str, Any]], posterior: Any, failed: Any, finite: Any
) -> Calibration:
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
        evaluation={k: _float(result.get(k, result["failed"])) for k in evaluated},
        history=history,
        updates={name: np.array([_float(row[name]) for row in rows]) for name in names},
        failures={name: np.asarray(x) for name, x in failed.items()},
        successes={name: np.asarray(x) for name, x in finite.items()},
        n_simulations=result["simulations"],
        n_failed=result["failed_simulations"],
        n_values=result.get("values", 0),
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
    return report_of(folder, name, config, text, directory, problem, calibration, out=own(folder / "report.html"))
