"""Configurations from files and from the package."""

import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from calibrant._config._error import ConfigError
from calibrant._config._method import METHODS
from calibrant._config._whole import Config


def bundled_configs() -> dict[str, str]:
    """Name -> text of the configurations that come with the package."""
    folder = files("calibrant") / "configs"
    return {f.name.removesuffix(".toml"): f.read_text() for f in sorted(folder.iterdir(), key=lambda f: f.name)}


def load_config(name: str) -> tuple[Config, Path, str]:
    """A configuration by bundled name or path: itself, the directory it is relative to, its text.

    **Raises:** `ConfigError`.
    """
    bundled = bundled_configs()
    if name in bundled:
        return parse_config(bundled[name], name), Path.cwd(), bundled[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"There is no config '{name}'; give a TOML file or one of {', '.join(bundled)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}).") from error
    return parse_config(text, str(path)), path.resolve().parent, text


def parse_config(text: str, where: str) -> Config:
    """A configuration from TOML text.

    **Raises:** `ConfigError`, naming the first field that is wrong.
    """
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        path = [x for i, x in enumerate(first["loc"]) if not (i == 1 and first["loc"][0] == "method" and x in METHODS)]
        field = ".".join(str(x) for x in path) or "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        raise ConfigError(f"{where}: {field}: {message}.") from error
