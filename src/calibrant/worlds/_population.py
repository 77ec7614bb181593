"""A world laid out for computing: what a simulation needs of everybody, in blocks that can live on devices.

Each block holds the people of neighbouring areas, found by bisecting the map again and again where its people are
halved (recursive coordinate bisection, Berger and Bokhari 1987). Residences never cross blocks. Workplaces and schools
may: a venue with members in several blocks has a copy in each, and only those copies are exchanged.
"""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calibrant._files import atomic_path
from calibrant.worlds._world import RESIDENCES, World, WorldError, nearest_areas

#: In memory, or on disk, where a slice of it is read when it is asked for.
Column = np.ndarray | h5py.Dataset

SCHEMA = "calibrant-population"
VERSION = 1
_NUMBERS = ("blocks", "n_residences", "n_activities", "cut", "largest_residence", "largest_activity", "largest_cell")
_OF_AREAS = ("area_of", "borough", "near", "around")


@dataclasses.dataclass(frozen=True)
class Population:
    """People in `blocks` of equal length; blocks are filled up with nobodies at their ends.

    Arrays of people, shape (blocks x people a block,):

    - `index`: position in the world, which the random draws of a person go by, uint32; `exists`.
    - `age`, `sex`, `area` (a row of the arrays of areas, below).
    - `residence`: a row of `n_residences`; `residence_members`, all who live or work there; `in_care_home`.
    - `activity`: a row of `n_activities`, or -1; `activity_members`; `activity_kind`, into `ACTIVITIES`.
    - `lives_at_activity`: residents of a care home with staff, who are members of the staff's activity and meet
      everybody of the home there.

    Rows of nobodies are -1.

    Arrays of areas, shape (blocks x areas a block,): `area_of`, position in the world, -1 for none; `borough`; `near`,
    rows of the nearest areas, itself first, shape (..., k); `around`, people who live in those.

    `cut`: the last so many activities of every block are copies of those with members in several blocks.
    `largest_cell`: people of one area, age and sex, at most.

    From a file (`open`) arrays of people stay on disk, where they are read a slice at a time.
    """

    blocks: int
    index: Column
    exists: Column
    age: Column
    sex: Column
    area: Column
    residence: Column
    residence_members: Column
    in_care_home: Column
    lives_at_activity: Column
    activity: Column
    activity_members: Column
    activity_kind: Column
    area_of: np.ndarray
    borough: np.ndarray
    near: np.ndarray
    around: np.ndarray
    n_residences: int
    n_activities: int
    cut: int
    largest_residence: int
    largest_activity: int
    largest_cell: int

    @classmethod
    def of(cls, world: World, *, blocks: int = 1, near: int = 1) -> "Population":
        """Lay a world out in so many blocks. In one block everybody stays where they are.

        **Raises:** `WorldError` if there are fewer areas than blocks.
        """
        block_of_area = split_areas(world, blocks)
        area = world.area
        block = block_of_area[area].astype(np.int32)
        lives_there, of_residence, activity, of_activity, kind = _memberships(world)

        # Areas, then residences, then people, in order within their blocks.
        area_row, area_of = _rows(block_of_area, blocks)
        order = np.arange(world.n_people) if blocks == 1 else np.argsort(block, kind="stable")
        sizes = np.bincount(block, minlength=blocks)
        length = int(sizes.max())
        slot = np.concatenate([np.arange(n) + i * length for i, n in enumerate(sizes)])

        def people(x: np.ndarray, missing: int) -> np.ndarray:
            if blocks == 1:
                return x
            out = np.full(blocks * length, missing, dtype=x.dtype)
            out[slot] = x[order]
            return out

        residence_row, _ = _rows(block_of_area[world.residence_area], blocks)
        activity_row, n_activities, cut = _activities(activity, block, world.n_activities, blocks)
        nearest = nearest_areas(world.latitude, world.longitude, near)
        around = np.bincount(area, minlength=world.n_areas)[nearest].sum(1)
        there = np.maximum(area_of, 0)
        itself = np.broadcast_to(np.arange(area_of.size)[:, None], (area_of.size, nearest.shape[1]))
        return cls(
            blocks=blocks,
            index=people(np.arange(world.n_people, dtype=np.uint32), 0),
            exists=people(np.ones(world.n_people, bool), 0),
            age=people(world.age, 0),
            sex=people(world.sex, 0),
            area=people(area_row[area].astype(np.int32), -1),
            residence=people(residence_row[world.residence].astype(np.int32), -1),
            residence_members=people(of_residence.astype(np.int32), 1),
            in_care_home=people(world.residence_kind[world.residence] == RESIDENCES.index("care home"), 0),
            lives_at_activity=people(lives_there, 0),
            activity=people(activity_row.astype(np.int32), -1),
            activity_members=people(of_activity.astype(np.int32), 1),
            activity_kind=people(kind.astype(np.uint8), 0),
            area_of=area_of,
            borough=np.where(area_of < 0, 0, world.borough[there]).astype(np.int32),
            near=np.where(area_of[:, None] < 0, itself, area_row[nearest[there]]).astype(np.int32),
            around=np.where(area_of < 0, 1, around[there]),
            n_residences=_longest(block_of_area[world.residence_area], blocks) * blocks,
            n_activities=n_activities,
            cut=cut,
            largest_residence=int(of_residence.max()),
            largest_activity=int(of_activity.max()),
            largest_cell=_largest_cell(world),
        )

    @property
    def n_people(self) -> int:
        """Rows of people, the nobodies included."""
        return self.index.shape[0]

    @property
    def n_areas(self) -> int:
        """Rows of areas, the empty ones included."""
        return self.area_of.shape[0]

    @property
    def n_areas_of_world(self) -> int:
        """Areas of the world."""
        return int(np.sum(self.area_of >= 0))

    def of_areas(self, x: np.ndarray) -> np.ndarray:
        """An array of the areas of the world as rows of areas here; 0 for none."""
        return np.where(self.area_of < 0, 0, x[np.maximum(self.area_of, 0)]).astype(x.dtype)

    def save(self, path: "str | Path") -> None:
        """Write as HDF5, block after block, so that a process reads its own alone. Atomic."""
        with atomic_path(Path(path)) as part, h5py.File(part, "w") as file:
            file.attrs["schema"], file.attrs["version"] = SCHEMA, VERSION
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in _NUMBERS:
                    file.attrs[field.name] = value
                else:
                    chunks = (value.shape[0] // self.blocks, *value.shape[1:])
                    file.create_dataset(field.name, data=value, chunks=chunks if min(chunks, default=0) else None)

    @classmethod
    def open(cls, path: "str | Path") -> "Population":
        """What `save` wrote.

        **Raises:** `WorldError` for a file that is none of ours, of another version, or damaged.
        """
        try:
            file = h5py.File(path, "r")
            if file.attrs.get("schema") != SCHEMA:
                raise WorldError(f"{path} is no world laid out by `calibrant world divide`.")
            if file.attrs["version"] != VERSION:
                raise WorldError(f"{path} was laid out by another version of calibrant; divide the world again.")
            names = [field.name for field in dataclasses.fields(cls)]
            values: dict[str, Any] = {name: file.attrs[name] if name in _NUMBERS else file[name] for name in names}
            values |= {name: int(values[name]) for name in _NUMBERS}
            values |= {name: np.asarray(values[name]) for name in _OF_AREAS}
        except FileNotFoundError:
            raise WorldError(f"There is no file {path}.") from None
        except (OSError, KeyError) as error:
            raise WorldError(f"{path} cannot be read as a world ({error}).") from error
        return cls(**values)


def is_laid_out(path: "str | Path") -> bool:
    """Whether a file is what `Population.save` wrote."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("schema") == SCHEMA)
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Balance:
    """What dividing a world in blocks would cost.

    `people`, of each block; `cut_venues`, main activities with members in several blocks; `cut_members`, their members
    as a share of all members; `near_elsewhere`, areas near another that lie in another block, as a share.
    """

    people: np.ndarray
    cut_venues: int
    venues: int
    cut_members: float
    near_elsewhere: float

    @classmethod
    def of(cls, world: World, blocks: int, near: int = 3) -> "Balance":
        """Divide and count.

        **Raises:** `WorldError` if there are fewer areas than blocks.
        """
        block_of_area = split_areas(world, blocks)
        block = block_of_area[world.area]
        _, _, activity, _, _ = _memberships(world)
        first, last = _span(activity, block, world.n_activities)
        cut = (last > first)[np.maximum(activity, 0)] & (activity >= 0) if world.n_activities else activity > 0
        nearest = nearest_areas(world.latitude, world.longitude, near)
        return cls(
            people=np.bincount(block, minlength=blocks),
            cut_venues=int(np.sum(last > first)),
            venues=world.n_activities,
            cut_members=float(np.sum(cut) / max(np.sum(activity >= 0), 1)),
            near_elsewhere=float(np.mean(block_of_area[nearest] != block_of_area[:, None])),
        )

    @property
    def efficiency(self) -> float:
        """Mean over largest number of people: the share of device time that is not waiting."""
        return float(self.people.mean() / self.people.max())

    def bytes_a_step(self, areas: int, columns: int = 1, leisure: int = 6) -> int:
        """Bytes that each device contributes to exchanges in a step with so many columns (1 + tangents).

        The copies of what is cut; and tables of leisure by area, gathered and added up, the latter of a simulation in
        two words.
        """
        return 4 * (columns * (self.cut_venues + 2 * areas * leisure) + areas * leisure)


def split_areas(world: World, blocks: int) -> np.ndarray:
    """The block of each area, int32: neighbouring areas, about equal numbers of people.

    **Raises:** `WorldError` if there are fewer areas than blocks.
    """
    if not 1 <= blocks <= world.n_areas:
        raise WorldError(f"A world of {world.n_areas} areas can be divided in at most so many blocks, not {blocks}.")
    people = np.bincount(world.area, minlength=world.n_areas)
    lat, lon = np.radians(world.latitude), np.radians(world.longitude)
    place = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    block = np.zeros(world.n_areas, dtype=np.int32)

    def bisect(areas: np.ndarray, first: int, count: int) -> None:
        if count == 1:
            block[areas] = first
            return
        left = count // 2
        centred = place[areas] - place[areas].mean(0)
        # Along the direction in which they lie farthest apart.
        along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
        areas = areas[np.argsort(along, kind="stable")]
        share = np.cumsum(people[areas]) / max(people[areas].sum(), 1)
        cut = int(np.argmin(np.abs(share - left / count))) + 1
        cut = min(max(cut, left), areas.size - (count - left))
        bisect(np.sort(areas[:cut]), first, left)
        bisect(np.sort(areas[cut:]), first + left, count - left)

    bisect(np.arange(world.n_areas), 0, blocks)
    return block


def _memberships(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each person: whether they live at their activity, members of the residence, activity, its members and kind."""
    staffed = np.flatnonzero(world.activity_residence >= 0)
    of_home = np.full(world.n_residences, -1, dtype=np.int32)
    of_home[world.activity_residence[staffed]] = staffed
    lives_in = of_home[world.residence]
    activity = np.where(lives_in >= 0, lives_in, world.activity)
    takes_part = activity >= 0
    in_residence = np.bincount(world.residence, minlength=world.n_residences)
    in_activity = np.bincount(activity[takes_part], minlength=world.n_activities)
    in_residence[world.activity_residence[staffed]] = in_activity[staffed]
    if world.n_activities:
        members = np.where(takes_part, in_activity[np.maximum(activity, 0)], 1)
        kind = np.where(takes_part, world.activity_kind[np.maximum(activity, 0)], 0)
    else:
        members, kind = np.ones_like(activity), np.zeros_like(activity)
    return lives_in >= 0, in_residence[world.residence], activity, members, kind


def _largest_cell(world: World) -> int:
    ages = 100
    cell = (world.area.astype(np.int64) * ages + np.minimum(world.age, ages - 1)) * 2 + world.sex
    return int(np.bincount(cell).max())


def _longest(block: np.ndarray, blocks: int) -> int:
    return int(np.bincount(block, minlength=blocks).max(initial=0))


def _rows(block: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of things in blocks of equal length, in order; and the thing of each row, -1 for none."""
    length = _longest(block, blocks)
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=blocks)
    row = np.empty(block.size, dtype=np.int64)
    row[order] = np.concatenate([np.arange(n) + i * length for i, n in enumerate(sizes)])
    thing = np.full(blocks * length, -1, dtype=np.int64)
    thing[row] = np.arange(block.size)
    return row, thing


def _span(activity: np.ndarray, block: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last block of the members of each activity."""
    takes_part = activity >= 0
    first, last = np.full(n, np.iinfo(np.int32).max, dtype=np.int32), np.full(n, -1, dtype=np.int32)
    np.minimum.at(first, activity[takes_part], block[takes_part])
    np.maximum.at(last, activity[takes_part], block[takes_part])
    return first, last


def _activities(activity: np.ndarray, block: np.ndarray, n: int, blocks: int) -> tuple[np.ndarray, int, int]:
    """The row of everybody's activity, how many rows there are, and how many of each block are copies."""
    if blocks == 1 or not n:
        return activity, n, 0
    first, last = _span(activity, block, n)
    cut = last > first
    whole = ~cut & (last >= 0)
    row = np.zeros(n, dtype=np.int64)
    within, _ = _rows(first[whole], blocks)
    length = _longest(first[whole], blocks)
    copies = int(cut.sum())
    row[whole] = within % max(length, 1)
    row[cut] = length + np.arange(copies)
    rows = length + copies
    return np.where(activity < 0, -1, block * rows + row[np.maximum(activity, 0)]), blocks * rows, copies
