"""A run under way: `OUT.unfinished`, which becomes `OUT` once it is whole."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from calibrant._calibration import SCHEMA, Calibration
from calibrant._checkpoints import Checkpoints, locked
from calibrant._config import Config, ConfigError
from calibrant._config._schema import DevicesConfig
from calibrant._devices import Devices
from calibrant._files import write_text
from calibrant._problem import Problem
from calibrant._processes import is_first, wait_for_all
from calibrant.cli._run import report_of
from calibrant.cli._scratch import own, scratch

_ABOUT = "run.json"


class Unfinished:
    """Where a run is kept until it is whole. A context manager that holds a lock on it.

    Made by `begin` or `resume`.
    """

    def __init__(self, out: Path, about: dict[str, Any], text: str, *, anew: bool, replace: bool):
        self.out, self._about, self.text, self._anew, self._replace = out, about, text, anew, replace
        self.folder = _folder(out)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")

    @property
    def name(self) -> str:
        """Of the run."""
        return self._about["name"]

    @property
    def seed(self) -> int:
        """Of the run."""
        return self._about["seed"]

    @property
    def start(self) -> Path | None:
        """The run whose posterior it begins with."""
        return None if self._about["start"] is None else Path(self._about["start"])

    @property
    def devices(self) -> DevicesConfig | None:
        """Those it runs on, if it was begun on several."""
        given = self._about.get("devices")  # runs that were begun before there were any have none
        return None if given is None else DevicesConfig(**given)

    def on(self, mesh: Devices | None) -> None:
        """Keep what it runs on."""
        self._about["devices"] = None if mesh is None else dataclasses.asdict(mesh)

    @property
    def config(self) -> Config:
        """What is run: the text, and what the command line changed."""
        return Config.model_validate(self._about["config"])

    @property
    def directory(self) -> Path:
        """What its relative paths are relative to."""
        return Path(self._about["config_directory"])

    def __enter__(self) -> "Unfinished":
        self._made = [folder for folder in self.folder.parents if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        if self._anew:
            for left_over in self.folder.iterdir():
                if left_over.is_dir():
                    shutil.rmtree(left_over)
                elif left_over.name != ".lock":
                    left_over.unlink()
            write_text(self.folder / "config.toml", self.text)
        write_text(self.folder / _ABOUT, json.dumps(self._about, indent=2) + "\n")
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if self.folder.exists() and not any(self.checkpoints.directory.glob("[0-9]*.h5")):
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing to go on from
            for parent in self._made:
                with contextlib.suppress(OSError):  # somebody else's files are in it
                    parent.rmdir()
        self._lock.release()

    def finish(self, problem: Problem, calibration: Calibration) -> Path:
        """Write everything, move it to its place, and add the report, whose path is returned.

        The checkpoints stay with a run that was interrupted, so that it can be resumed.
        """
        manifest = {key: self._about[key] for key in ("config", "config_directory", "name", "devices")}
        calibration.save(self.folder, manifest)
        if calibration.result.successful:
            shutil.rmtree(self.checkpoints.directory)
            (self.folder / _ABOUT).unlink()
        (self.folder / ".lock").unlink(missing_ok=True)
        self._move()
        # The result is safe from here on; an interrupted report can be written again.
        return report_of(self.out, self.name, self.config, self.text, self.directory, problem, calibration)

    def _move(self) -> None:
        out, old = self.out, None
        if out.exists():
            if not self._replace:
                raise ConfigError(f"{out} was made in the meantime; this run is whole in {self.folder}: move it.")
            old = out.with_name(f".{out.name}.{time.time_ns()}.old")
            os.replace(out, old)
        try:
            os.replace(self.folder, out)
        except OSError:
            if old is not None:
                os.replace(old, out)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def begin(
    out: Path, name: str, config: Config, text: str, directory: Path, *, seed: int, start: Path | None, overwrite: bool
) -> Unfinished:
    """A new run. Of several processes the first keeps it; the others keep theirs where it is thrown away."""
    out = own(out)
    about = {
        "schema": SCHEMA,
        "name": name,
        "seed": seed,
        "start": None if start is None else str(start.resolve()),
        "devices": None,
        "config": json.loads(config.model_dump_json()),
        "config_directory": str(directory),
    }
    return Unfinished(out, about, text, anew=True, replace=overwrite)


def resume(out: Path) -> Unfinished:
    """A run that was killed or interrupted.

    **Raises:** `ConfigError` if there is none.
    """
    out = out.with_name(out.name.removesuffix(".unfinished"))
    if not is_first():
        out = _scratch_copy(out)
    wait_for_all("a run to be resumed was read")
    folder = _folder(out)
    if not folder.exists():
        if not (out / _ABOUT).is_file():
            ended = (out / "manifest.json").is_file()
            why = "is whole, there is nothing to go on with" if ended else "holds no run that was stopped"
            raise ConfigError(f"--resume: {out} {why}.")
        _copy(out, folder)
    lock = _locked(folder)
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        text = (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--resume: {folder} holds no run that had begun ({error}); remove it and start anew."
        ) from error
    finally:
        lock.release()
    if about.get("schema") != SCHEMA:
        raise ConfigError(f"--resume: {folder} was written by another version of calibrant; start anew.")
    return Unfinished(out, about, text, anew=False, replace=True)


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
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=f".{out.name}.unfinished", suffix=".part"))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror} in {nearest}); choose another --out.") from error
    if _folder(out).exists():
        _locked(_folder(out)).release()
        if not overwrite:
            raise ConfigError(
                f"{_folder(out)} holds a run that was stopped; go on with it by --resume {out}, or pass --overwrite."
            )


def _scratch_copy(out: Path) -> Path:
    """A run as it is on disk, where a process that is not the first may go on with it."""
    copy = scratch() / out.name
    for source, target in ((out, copy), (_folder(out), _folder(copy))):
        if source.is_dir():
            shutil.copytree(source, target)
    return copy


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".unfinished")


def _locked(folder: Path) -> Any:
    try:
        return locked(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _copy(out: Path, folder: Path) -> None:
    """What a run that was interrupted goes on from, beside its results, which stay until it ends."""
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    for name in (_ABOUT, "config.toml"):
        shutil.copy2(out / name, part / name)
    shutil.copytree(out / "checkpoints", part / "checkpoints")
    part.chmod(0o755)
    os.replace(part, folder)
