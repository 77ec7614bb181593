"""JUNE from the options of a configuration."""

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.models.june._calendar import Calendar, Policy
from calibrant.models.june._june import June
from calibrant.worlds import Population, World, build_world, is_laid_out, read_atlas

#: Residents of London in the published experiments.
LONDON = 8_600_000


def june_from_options(
    *,
    size: int | None = None,
    scale: float | None = None,
    world: str | None = None,
    world_seed: int = 0,
    atlas: str | None = None,
    centroids: str | None = None,
    start: "dt.date | str" = dt.date(2020, 3, 1),
    days: int = 50,
    policies: Sequence[Mapping[str, Any]] = (),
    factors: Sequence[str] | None = None,
    import_days: int = 1,
    leisure_areas: int = 3,
    regions: str = "all",
    sampled: bool = False,
    detail: bool = False,
    blocks: int = 1,
    directory: Path = Path(),
) -> June:
    """A model of JUNE.

    **Arguments:** one of `size`, people of a built town (20,000); `scale`, of London's 8.6 million, each agent standing
    for 1 / scale people; `world`, a file, of a world or of one laid out in blocks. `world_seed`, of what is built;
    `atlas` and `centroids`, files of the real areas. `start`, `days`, `policies` (tables with the arguments of
    `Policy`; `every = 7` makes a free factor of every seven days), `factors` (names of the free ones, in order, if not
    all are used), `import_days`: the calendar. The rest as of `June`.

    **Raises:** `ValueError`.
    """
    given = [name for name, x in (("size", size), ("scale", scale), ("world", world)) if x is not None]
    if len(given) > 1:
        raise ValueError(f"give only one of size, scale and world, got {' and '.join(given)}")
    if (atlas is None) != (centroids is None):
        raise ValueError("the atlas of areas and the file of their centroids are needed together")
    if scale is not None and not 0 < scale <= 1:
        raise ValueError(f"scale is from 0 to 1, got {scale}")
    start = _date(start, "start")
    calendar = Calendar(
        start,
        days,
        [policy for table in policies for policy in _policies(table, start + dt.timedelta(days=days))],
        import_days=import_days,
        factors=None if factors is None else tuple(factors),
    )
    if world is not None:
        file = directory / world
        population = Population.open(file) if is_laid_out(file) else World.load(file)
    else:
        areas = None
        if atlas is not None and centroids is not None:
            areas = read_atlas(directory / atlas, directory / centroids)
        people = round(LONDON * scale) if scale is not None else 20_000 if size is None else size
        population = build_world(people, seed=world_seed, areas=areas)
    return June(
        population,
        calendar,
        leisure_areas=leisure_areas,
        regions=regions,
        sampled=sampled,
        detail=detail,
        people_per_agent=1 / scale if scale is not None else 1.0,
        blocks=blocks,
    )


def _date(x: Any, what: str) -> dt.date:
    if isinstance(x, dt.date) and not isinstance(x, dt.datetime):
        return x
    try:
        return dt.date.fromisoformat(str(x))
    except ValueError:
        raise ValueError(f"{what} is a date like 2020-03-23, got {x!r}") from None


def _policies(table: Mapping[str, Any], last: dt.date) -> list[Policy]:
    table = dict(table)
    every = table.pop("every", None)
    known = ("start", "end", "venues", "factor", "isolation", "name")
    unknown = [key for key in table if key not in known]
    if unknown:
        raise ValueError(f"a policy has {', '.join(known)} and every, not '{unknown[0]}'")
    table["start"] = _date(table.get("start"), "the start of a policy")
    if table.get("end") is not None:
        table["end"] = _date(table["end"], "the end of a policy")
    table["venues"] = tuple(table.get("venues", ()))
    if every is None:
        return [Policy(**table)]
    name = table.get("factor")
    if not isinstance(name, str):
        raise ValueError('a policy with `every` needs a free factor, factor = "name"')
    start, end = table["start"], table.get("end") or last
    n = int(np.ceil((end - start).days / int(every)))
    edges = [min(start + dt.timedelta(days=int(every) * i), end) for i in range(n + 1)]
    return [
        Policy(**{**table, "start": a, "end": b, "factor": f"{name} {i}"})
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
