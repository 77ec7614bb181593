"""Data: files, bundled, synthetic."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from calibrant._config._error import ConfigError
from calibrant._config._schema import DataConfig
from calibrant._model import AbstractModel
from calibrant._simulate import simulate
from calibrant.data import DataError, read_series, read_shares
from calibrant.models import OUTBREAK_1978


def build_data(
    given: DataConfig, model: AbstractModel, params: Any, steps: int | None, directory: Path
) -> tuple[Any, dict[str, np.ndarray]]:
    """Data shaped like the model's outputs, over the whole calendar if there is one; of shares, how many were tested.

    **Raises:** `ConfigError`.
    """
    if given.synthetic is not None:
        truth = params.replace(given.synthetic.values)
        outputs = simulate(model, truth, seed=given.synthetic.seed, steps=steps).outputs
        return _kept(outputs, given.streams, "the model"), {}
    if given.bundled is not None:
        streams = {
            "in_bed": OUTBREAK_1978.in_bed,
            "convalescent": OUTBREAK_1978.convalescent,
            "ever_ill": OUTBREAK_1978.ever_ill,
        }
        data = {k: np.asarray(x, dtype=float) for k, x in streams.items()}
        return _kept(data, given.streams, "influenza-1978"), {}
    assert given.file is not None
    path = directory / given.file
    if given.column is not None:
        return read_column(path, given.column), {}
    if given.date_column is None:
        return {output: read_column(path, column) for output, column in given.columns.items()}, {}
    if model.dates is None:
        raise ConfigError("data.date_column: this model has no calendar to match dates with; leave it out.")
    try:
        series = read_series(path, given.columns, model.dates, date_column=given.date_column, select=given.select)
        tested = {}
        for name, share in given.shares.items():
            series[name], tested[name] = read_shares(
                directory / share.file,
                share.positive,
                share.tested,
                model.dates,
                date_column=share.date_column,
                select=share.select,
                pool=share.pool,
            )
    except DataError as error:
        raise ConfigError(f"data: {error}") from error
    return series, tested


def _kept(outputs: Any, names: list[str] | None, what: str) -> Any:
    """Only the named outputs."""
    if names is None:
        return outputs
    if not isinstance(outputs, dict):
        raise ConfigError(f"data.streams: {what} has one output without a name; leave streams out.")
    for name in names:
        if name not in outputs:
            raise ConfigError(f"data.streams: '{name}' is not in {what}; it has {', '.join(outputs)}.")
    return {name: outputs[name] for name in names}


def read_column(path: Path, column: str) -> np.ndarray:
    """One numeric column of a CSV with a header; blanks become NaN, which means not observed.

    **Raises:** `ConfigError`.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if column not in header:
                raise ConfigError(f"data: {path} has no column '{column}'; it has {', '.join(header) or 'none'}.")
            values = []
            for line, row in enumerate(reader, start=2):
                text = (row[column] or "").strip()
                try:
                    values.append(float(text) if text else np.nan)
                except ValueError:
                    raise ConfigError(
                        f"data: {path}, line {line}: '{text}' in column '{column}' is no number."
                    ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"data: {path} cannot be read ({error}).") from error
    out = np.asarray(values, dtype=float)
    if not np.isfinite(out).any():
        raise ConfigError(f"data: column '{column}' of {path} holds no number.")
    if np.isinf(out).any():
        raise ConfigError(f"data: column '{column}' of {path} holds an infinite number.")
    return out
