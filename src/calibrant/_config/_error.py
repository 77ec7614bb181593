"""The one error of configurations."""


class ConfigError(ValueError):
    """A mistake in a configuration or in a file it names."""
