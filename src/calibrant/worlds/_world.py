"""A synthetic population: who people are, where they live, and where they spend the day."""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calibrant._files import atomic_path

SCHEMA = "calibrant-world"
VERSION = 1

#: Kinds of residence and of main activity; arrays hold the position in these tuples.
RESIDENCES = ("household", "care home")
ACTIVITIES = ("company", "school", "university", "care home")
SEXES = ("female", "male")

# field -> (axis, dtype in memory and on file)
_PEOPLE = {"age": np.uint8, "sex": np.uint8, "residence": np.int32, "activity": np.int32}
_RESIDENCES = {"residence_kind": np.uint8, "residence_area": np.int32}
_ACTIVITIES = {"activity_kind": np.uint8, "activity_residence": np.int32}
_AREAS = {"latitude": np.float64, "longitude": np.float64, "borough": np.int32}


class WorldError(ValueError):
    """A file or arrays that are no world."""


@dataclasses.dataclass(frozen=True)
class World:
    """People, residences, main activities and areas.

    People are sorted by residence and residences by area, so that a household or an area is a contiguous range of
    people. Everybody has one residence and at most one main activity.

    **Arguments** (numpy arrays):

    - of people: `age`, in years, uint8; `sex`, uint8 into `SEXES`; `residence`, int32, ascending; `activity`, int32, -1
      for none, as for residents of a care home with staff.
    - of residences: `residence_kind`, uint8 into `RESIDENCES`; `residence_area`, int32, ascending.
    - of activities: `activity_kind`, uint8 into `ACTIVITIES`; `activity_residence`, int32, the residence that a care
      home's staff works in, -1 for other kinds.
    - of areas: `area_names`; `latitude`, `longitude`, degrees; `borough`, int32 into `borough_names`.
    - `about`: where the world comes from, strings.

    **Raises:** `WorldError`, which names the array and what is wrong with it.
    """

    age: np.ndarray
    sex: np.ndarray
    residence: np.ndarray
    activity: np.ndarray
    residence_kind: np.ndarray
    residence_area: np.ndarray
    activity_kind: np.ndarray
    activity_residence: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    borough: np.ndarray
    area_names: tuple[str, ...]
    borough_names: tuple[str, ...]
    about: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for group in (_PEOPLE, _RESIDENCES, _ACTIVITIES, _AREAS):
            lengths = {name: getattr(self, name).shape for name in group}
            if len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != 1:
                raise WorldError(f"A world needs arrays of one length for {', '.join(group)}; got {lengths}.")
            for name, dtype in group.items():
                if getattr(self, name).dtype != dtype:
                    raise WorldError(f"`{name}` of a world is {np.dtype(dtype)}, got {getattr(self, name).dtype}.")
        if not self.n_people:
            raise WorldError("A world has at least one person.")
        bounds = {
            "sex": (0, len(SEXES)),
            "residence": (0, self.n_residences),
            "activity": (-1, self.n_activities),
            "residence_kind": (0, len(RESIDENCES)),
            "residence_area": (0, self.n_areas),
            "activity_kind": (0, len(ACTIVITIES)),
            "activity_residence": (-1, self.n_residences),
            "borough": (0, len(self.borough_names)),
            "age": (0, 121),
        }
        for name, (low, high) in bounds.items():
            x = getattr(self, name)
            if x.size and not (low <= int(x.min()) and int(x.max()) < high):
                raise WorldError(
                    f"`{name}` of a world must lie from {low} to {high - 1}, got {int(x.min())} to {int(x.max())}."
                )
        for name in ("residence", "residence_area"):
            if np.any(np.diff(getattr(self, name)) < 0):
                raise WorldError(f"`{name}` of a world must be ascending; sort people by area and residence.")
        if len(self.area_names) != self.n_areas:
            raise WorldError(f"A world has one name an area; got {len(self.area_names)} names of {self.n_areas} areas.")
        if not (np.all(np.abs(self.latitude) <= 90) and np.all(np.abs(self.longitude) <= 360)):
            raise WorldError("`latitude` and `longitude` of a world are finite, in degrees.")
        staffed = self.activity_residence >= 0
        if np.any(staffed != (self.activity_kind == ACTIVITIES.index("care home"))):
            raise WorldError(
                "`activity_residence` is the residence of a care home's staff, and -1 for other activities."
            )
        if np.any(self.residence_kind[self.activity_residence[staffed]] != RESIDENCES.index("care home")):
            raise WorldError("`activity_residence` of a care home's staff must be a care home.")
        if len(np.unique(self.activity_residence[staffed])) != np.sum(staffed):
            raise WorldError("A care home has one main activity for all its staff.")
        both = np.isin(self.residence, self.activity_residence[staffed]) & (self.activity >= 0)
        if np.any(both):
            raise WorldError(
                f"Residents of a care home with staff have no main activity of their own; person {int(np.argmax(both))}"
                f" and {int(both.sum()) - 1} others have."
            )

    @property
    def n_people(self) -> int:
        return self.age.shape[0]

    @property
    def n_residences(self) -> int:
        return self.residence_kind.shape[0]

    @property
    def n_activities(self) -> int:
        return self.activity_kind.shape[0]

    @property
    def n_areas(self) -> int:
        return self.latitude.shape[0]

    @property
    def area(self) -> np.ndarray:
        """Area of residence of each person, int32, ascending."""
        return self.residence_area[self.residence]

    def save(self, path: "str | Path") -> None:
        """Write the world as HDF5: flat arrays in groups, nothing that could run. Atomic."""
        with atomic_path(Path(path)) as part, h5py.File(part, "w") as file:
            file.attrs["schema"], file.attrs["version"] = SCHEMA, VERSION
            for key, value in self.about.items():
                file.attrs[f"about_{key}"] = value
            for group, names in _GROUPS.items():
                for name in names:
                    compression: Any = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                    file.create_dataset(f"{group}/{name}", data=getattr(self, name), **compression)
            text = h5py.string_dtype()
            file.create_dataset("areas/area_names", data=list(self.area_names), dtype=text)
            file.create_dataset("areas/borough_names", data=list(self.borough_names), dtype=text)

    @classmethod
    def load(cls, path: "str | Path") -> "World":
        """Read what `save` wrote.

        **Raises:** `WorldError` for a file that is none of ours, of another version, or damaged.
        """
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("schema") != SCHEMA:
                    raise WorldError(f"{path} is no world of calibrant; `calibrant world import` reads other formats.")
                if file.attrs["version"] != VERSION:
                    raise WorldError(
                        f"{path} is a world of version {file.attrs['version']} and this calibrant reads version "
                        f"{VERSION}; build it again."
                    )
                arrays: dict[str, Any] = {
                    name: np.asarray(file[f"{group}/{name}"]) for group, names in _GROUPS.items() for name in names
                }
                of_areas = ("area_names", "borough_names")
                names: dict[str, Any] = {name: _texts(file[f"areas/{name}"]) for name in of_areas}
                about = {k[6:]: str(v) for k, v in file.attrs.items() if k.startswith("about_")}
        except FileNotFoundError:
            raise WorldError(f"There is no file {path}.") from None
        except (OSError, KeyError) as error:
            raise WorldError(f"{path} cannot be read as a world ({error}).") from error
        return cls(**arrays, **names, about=about)


def _texts(x: Any) -> tuple[str, ...]:
    if not isinstance(x, h5py.Dataset) or h5py.check_string_dtype(x.dtype) is None:
        raise KeyError(f"{getattr(x, 'name', x)} holds no names")
    return tuple(str(name, "utf-8") for name in np.asarray(x))


_GROUPS = {"people": _PEOPLE, "residences": _RESIDENCES, "activities": _ACTIVITIES, "areas": _AREAS}


def nearest_areas(latitude: np.ndarray, longitude: np.ndarray, k: int) -> np.ndarray:
    """The `k` nearest areas of each, itself first, by great-circle distance: int32 of shape (areas, k).

    With fewer than `k` areas, all of them.
    """
    n = len(latitude)
    rows = max(1, 10_000_000 // n)  # at a time, for memory
    parts = [
        np.argsort(_squared_chords(latitude, longitude, slice(i, i + rows)), axis=1, kind="stable")[:, : min(k, n)]
        for i in range(0, n, rows)
    ]
    return np.concatenate(parts).astype(np.int32)


def distances_km(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Great-circle distances between areas, km, (areas, areas)."""
    return 2 * 6371.0 * np.arcsin(np.sqrt(np.clip(_squared_chords(latitude, longitude), 0, 4)) / 2)


def _squared_chords(latitude: np.ndarray, longitude: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    lat, lon = np.radians(latitude), np.radians(longitude)
    x = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    squared = np.maximum(2 - 2 * x[rows] @ x.T, 0)
    own = np.arange(len(x))[rows]
    squared[np.arange(len(own)), own] = -1  # an area is its own nearest, whatever the rounding
    return squared
