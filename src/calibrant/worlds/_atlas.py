"""The real areas of London: Census 2011 by MSOA from the files that the Greater London Authority publishes.

The MSOA Atlas (data.london.gov.uk, Open Government Licence) has a row an area with people by age and households by
composition; the centroids file, a row an area with its place and borough. Neither is part of this package.
"""

import csv
from pathlib import Path

import numpy as np

from calibrant.worlds import _facts as facts
from calibrant.worlds._build import Areas
from calibrant.worlds._world import WorldError

_HOUSEHOLDS = {
    "one person": "One person household",
    "couple": "Couple household without dependent children",
    "couple with children": "Couple household with dependent children",
    "lone parent": "Lone parent household",
    "other": "Other household Types",
}


def read_atlas(atlas: "str | Path", centroids: "str | Path") -> Areas:
    """Areas of London from the GLA MSOA Atlas (CSV, latin-1) and a file of centroids.

    The centroids file needs columns `msoa11cd`, `lad11nm` (borough), `lat`, `lon` and `usual_residents_2011`.

    **Raises:** `WorldError` for files without those columns.
    """
    rows = _rows(atlas, "latin-1")
    header = [name.strip() for name in rows[0]]
    bands = [f"Mid-year Estimates 2012, by age;{low}-{low + 4};" for low in facts.AGE_BANDS[:-1]]
    bands.append("Mid-year Estimates 2012, by age;90+;")
    kinds = [f"Household Composition (2011);Numbers;{_HOUSEHOLDS[name]}" for name in facts.HOUSEHOLDS]
    columns = {name: _column(atlas, header, name) for name in (*bands, *kinds)}
    rows = [row for row in rows[1:] if row[0].startswith("E0")]
    numbers = {name: np.array([_number(atlas, row[i]) for row in rows]) for name, i in columns.items()}

    places = _rows(centroids, "utf-8")
    wanted = ("msoa11cd", "lad11nm", "lat", "lon")
    at = {name: _column(centroids, places[0], name) for name in wanted}
    by_code = {row[at["msoa11cd"]]: row for row in places[1:]}
    missing = [row[0] for row in rows if row[0] not in by_code]
    if missing:
        raise WorldError(f"{centroids} has no row for area {missing[0]} of {atlas} ({len(missing)} are missing).")
    of = [by_code[row[0]] for row in rows]
    boroughs = sorted({row[at["lad11nm"]] for row in of})
    latitude = np.array([float(row[at["lat"]]) for row in of])
    longitude = np.array([float(row[at["lon"]]) for row in of])
    ages = np.stack([numbers[name] for name in bands], axis=1)
    # Jobs: drawn to the centre, the City and the West End, as in a synthetic city.
    km = 111.2 * np.hypot(latitude - 51.515, (longitude + 0.12) * np.cos(np.radians(51.5)))
    jobs = ages.sum(1) * (1 + facts.CENTRE_JOBS * np.exp(-km / (facts.CENTRE_RADIUS * 25)))
    return Areas(
        names=tuple(row[1] for row in rows),
        latitude=latitude,
        longitude=longitude,
        borough=np.array([boroughs.index(row[at["lad11nm"]]) for row in of], dtype=np.int32),
        borough_names=tuple(boroughs),
        ages=ages,
        households=np.stack([numbers[name] for name in kinds], axis=1),
        jobs=jobs,
        source=f"GLA MSOA Atlas, {len(rows)} areas of London",
    )


def _rows(path: "str | Path", encoding: str) -> list[list[str]]:
    try:
        with open(path, encoding=encoding, newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorldError(f"{path} cannot be read as CSV ({error}).") from error
    if len(rows) < 2:
        raise WorldError(f"{path} has no rows.")
    return rows


def _column(path: "str | Path", header: list[str], name: str) -> int:
    found = [i for i, column in enumerate(header) if name in column]
    if not found:
        raise WorldError(f"{path} has no column '{name}'.")
    return found[0]


def _number(path: "str | Path", text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise WorldError(f"{path} has '{text}' where a number is expected.") from None
