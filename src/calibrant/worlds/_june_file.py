"""Worlds that the JUNE simulator wrote (`june_world.h5`)."""

from pathlib import Path

import h5py
import numpy as np

from calibrant.worlds._world import ACTIVITIES, RESIDENCES, World, WorldError

_KINDS = {"household": "household", "care_home": "care home"}
_MAIN = {"company": "company", "school": "school", "university": "university", "care_home": "care home"}


def import_june(path: "str | Path") -> World:
    """Read a world file of JUNE.

    Residence and main activity are the first two columns of a person's groups; an area is a super area (MSOA). Main
    activities that the model does not know (hospitals) are left out, and counted in `about`. Venues without members are
    left out.

    **Raises:** `WorldError` for a file that is no world of JUNE.
    """
    try:
        with h5py.File(path, "r") as file:
            people = {
                name: np.asarray(file[f"population/{name}"])
                for name in ("age", "sex", "super_area", "group_ids", "group_specs")
            }
            names = tuple(_text(x) for x in np.asarray(file["geography/super_area_name"]))
            coordinates = np.asarray(file["geography/super_area_coordinates"], dtype=float)
            regions = np.asarray(file["geography/super_area_region"], dtype=np.int64)
            region_names = [_text(x) for x in np.asarray(file["geography/region_name"])]
    except (OSError, KeyError) as error:
        raise WorldError(f"{path} is no world file of JUNE ({error}).") from error
    specs = np.array([[_text(x) for x in row] for row in people["group_specs"][:, :2]])
    ids = people["group_ids"][:, :2].astype(np.int64)
    super_area = people["super_area"].astype(np.int64)
    unknown = sorted(set(specs[:, 0]) - set(_KINDS))
    if unknown:
        raise WorldError(f"{path} has people who live in '{unknown[0]}'; known are {', '.join(_KINDS)}.")

    # Residences, by area, kind and number; care homes with staff but no residents are among them.
    kind = np.array([RESIDENCES.index(_KINDS[s]) for s in specs[:, 0]])
    works_in_care = np.flatnonzero(specs[:, 1] == "care_home")
    lived = np.stack([super_area, kind, ids[:, 0]], axis=1)
    home_of = {int(i): int(a) for a, k, i in lived if RESIDENCES[k] == "care home"}
    empty = {int(ids[p, 1]): int(super_area[p]) for p in works_in_care if int(ids[p, 1]) not in home_of}
    more = np.array([[a, RESIDENCES.index("care home"), i] for i, a in empty.items()], dtype=np.int64).reshape(-1, 3)
    table, residence = np.unique(np.concatenate([lived, more]), axis=0, return_inverse=True)
    residence = residence.reshape(-1)[: len(lived)]

    # Main activities.
    main = np.array([ACTIVITIES.index(_MAIN[s]) if s in _MAIN else -1 for s in specs[:, 1]])
    takes_part = main >= 0
    venues, found = np.unique(np.stack([main, ids[:, 1]], axis=1)[takes_part], axis=0, return_inverse=True)
    activity = np.full(len(main), -1, dtype=np.int32)
    activity[takes_part] = found.reshape(-1)
    care = {int(i): r for r, (_, k, i) in enumerate(table) if RESIDENCES[k] == "care home"}
    staff_of = [care[int(i)] if ACTIVITIES[k] == "care home" else -1 for k, i in venues]
    left_out = [s for s in specs[:, 1] if s.strip() and s not in _MAIN]
    # A resident of a care home with staff is a member of that home, and of nothing else.
    both = np.isin(residence, [a for a in staff_of if a >= 0]) & takes_part
    left_out += [s.replace("_", " ") + " while resident in a care home" for s in specs[both, 1]]
    activity[both] = -1

    order = np.argsort(residence, kind="stable")
    sex = np.array([1 if _text(s) == "m" else 0 for s in people["sex"]])
    return World(
        age=people["age"][order].astype(np.uint8),
        sex=sex[order].astype(np.uint8),
        residence=residence[order].astype(np.int32),
        activity=activity[order],
        residence_kind=table[:, 1].astype(np.uint8),
        residence_area=table[:, 0].astype(np.int32),
        activity_kind=venues[:, 0].astype(np.uint8),
        activity_residence=np.array(staff_of, dtype=np.int32),
        latitude=coordinates[:, 0].copy(),
        longitude=coordinates[:, 1].copy(),
        borough=regions.astype(np.int32),
        area_names=names,
        borough_names=tuple(region_names[: int(regions.max()) + 1]),
        about={
            "source": f"JUNE world file {Path(path).name}",
            "left_out": ", ".join(f"{left_out.count(s)} in {s}" for s in sorted(set(left_out))) or "nobody",
        },
    )


def _text(x) -> str:
    return x.decode() if isinstance(x, bytes) else str(x)
