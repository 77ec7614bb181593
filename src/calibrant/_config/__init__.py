"""Configurations: a TOML file to a problem, its priors and a method. Every mistake is one sentence."""

from calibrant._config._error import ConfigError as ConfigError
from calibrant._config._load import bundled_configs as bundled_configs
from calibrant._config._load import load_config as load_config
from calibrant._config._load import parse_config as parse_config
from calibrant._config._method import METHODS as METHODS
from calibrant._config._method import as_other as as_other
from calibrant._config._models import MODELS as MODELS
from calibrant._config._models import build_model as build_model
from calibrant._config._whole import Config as Config
