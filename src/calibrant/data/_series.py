"""Daily series with real dates, aligned to a simulation's calendar."""

import csv
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """A file of observations that cannot be used as asked."""


def read_series(
    path: "str | Path",
    columns: Mapping[str, str],
    dates: Sequence[dt.date],
    *,
    date_column: str = "date",
    select: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Columns of a CSV on the given dates: name -> float array of shape (dates,), NaN where nothing was reported.

    **Arguments:** `columns`, name of the series -> column of the file, whose blanks mean not reported; `dates`,
    consecutive; `date_column`, in ISO format; `select`, column -> entry, the rows to use, if not all.

    **Raises:** `DataError` for a column that is not there, a date or number that is none, a date given twice, a
    negative count, and for a series without one value on the dates.
    """
    select = select or {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            for column in (date_column, *columns.values(), *select):
                if column not in header:
                    raise DataError(f"{path} has no column '{column}'; it has {', '.join(header) or 'none'}.")
            rows = [(line, row) for line, row in enumerate(reader, start=2) if _selected(row, select)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error

    if not rows and select:
        wanted = ", ".join(f"{column} = {entry}" for column, entry in select.items())
        raise DataError(f"{path} has no row with {wanted}.")

    position = {date: i for i, date in enumerate(dates)}
    out = {name: np.full(len(dates), np.nan) for name in columns}
    seen: set[dt.date] = set()
    for line, row in rows:
        text = (row[date_column] or "").strip()
        try:
            date = dt.date.fromisoformat(text)
        except ValueError:
            raise DataError(f"{path}, line {line}: '{text}' is no date like 2020-03-01.") from None
        if date in seen:
            raise DataError(f"{path}, line {line}: {date} is there twice; `select` says which rows to use.")
        seen.add(date)
        for name, column in columns.items():
            value = _count(path, line, column, row[column])
            if date in position:
                out[name][position[date]] = value
    for name, x in out.items():
        if not np.isfinite(x).any():
            reported = f"{min(seen)} to {max(seen)}" if seen else "no dates"
            raise DataError(
                f"{path}: column '{columns[name]}' has no value from {dates[0]} to {dates[-1]}; "
                f"the file covers {reported}."
            )
    return out


def read_shares(
    path: "str | Path",
    positive: str,
    tested: str,
    dates: Sequence[dt.date],
    *,
    date_column: str = "date",
    select: Mapping[str, str] | None = None,
    pool: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Share positive, and number tested, on the given dates: float arrays of shape (dates,).

    The share is NaN, and the number 0, where nobody was tested.

    **Arguments:** columns of the positive and of the tested; `pool`, the tests of so many days are put together, on the
    middle day; the rest as of `read_series`.

    **Raises:** `DataError`; also for more positive than tested.
    """
    both = {"positive": positive, "tested": tested}
    read = read_series(path, both, dates, date_column=date_column, select=select)
    n = np.nan_to_num(read["tested"])
    counted = (n > 0) & np.isfinite(read["positive"])
    wrong = counted & (read["positive"] > n)
    if wrong.any():
        raise DataError(f"{path}: more '{positive}' than '{tested}' on {dates[int(np.argmax(wrong))]}.")
    if not counted.any():
        raise DataError(f"{path}: nobody was tested from {dates[0]} to {dates[-1]}.")
    middle = np.minimum(np.arange(len(n)) // pool * pool + pool // 2, len(n) - 1)
    k, n = (np.bincount(middle, np.where(counted, x, 0), len(n)) for x in (read["positive"], n))
    return np.where(n > 0, k / np.maximum(n, 1), np.nan), n


def _selected(row: Mapping[str, "str | None"], select: Mapping[str, str]) -> bool:
    return all((row[column] or "").strip() == entry for column, entry in select.items())


def _count(path: "str | Path", line: int, column: str, text: "str | None") -> float:
    text = (text or "").strip()
    if not text:
        return np.nan
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{path}, line {line}: '{text}' in column '{column}' is no number.") from None
    if not np.isfinite(value):
        raise DataError(f"{path}, line {line}: '{text}' in column '{column}' is not finite.")
    if value < 0:
        raise DataError(f"{path}, line {line}: column '{column}' has the negative count {text}.")
    return value
