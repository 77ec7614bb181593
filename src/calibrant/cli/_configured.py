"""A configuration, with what the command line changes of it."""

from pathlib import Path

from calibrant._config import Config, ConfigError, bundled_configs, load_config
from calibrant._config._method import MALAConfig, NUTSConfig
from calibrant.worlds import MAX_PEOPLE


def configured(
    config: str, *, updates: int | None, size: float | None, scale: float | None, data: Path | None
) -> tuple[Config, Path, str]:
    """A configuration with what the command line changes: itself, where its files are, and its text."""
    settings, directory, text = load_config(config)
    if updates is not None:
        if isinstance(settings.method, (NUTSConfig, MALAConfig)):
            raise ConfigError(
                f"--updates is not for {settings.method.name}; set warmup and draws in the configuration."
            )
        settings.method.max_updates = updates
        text += f"\n# on the command line: --updates {updates}\n"
    if size is not None and scale is not None:
        raise ConfigError("--size and --scale both say how many people there are; give one.")
    if size is not None and not 1 <= size <= MAX_PEOPLE:
        raise ConfigError(f"--size is a number of people, got {size}.")
    if size is not None or scale is not None:
        options = {k: v for k, v in settings.model.options.items() if k not in ("size", "scale", "world")}
        settings.model.options = options | ({"size": round(size)} if size is not None else {"scale": scale})
        text += f"\n# on the command line: --{'size' if size is not None else 'scale'} {size or scale}\n"
    if data is not None:
        if settings.data.file is None:
            raise ConfigError("--data is for configurations that read a file; this one does not.")
        for source in (settings.data, *settings.data.shares.values()):
            source.file = str(data.resolve() / str(source.file))
        text += f"\n# on the command line: --data {data}\n"
    elif settings.data.file is not None and config in bundled_configs():
        raise ConfigError(f"{config} reads {settings.data.file}; say in which directory it is with --data DIR.")
    return settings, directory, text
