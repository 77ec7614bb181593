"""Worlds of a few people that the tests of JUNE reason about."""

import datetime as dt

import numpy as np

from calibrant import worlds
from calibrant.models.june import VENUES

MONDAY = dt.date(2020, 3, 2)


def make_world(age, residence, activity, *, homes=(), staff_of=None, kinds=(), areas=None, places=1):
    """A world from short lists; `homes` are the residences that are care homes."""
    residence = np.array(residence, dtype=np.int32)
    n = int(residence.max()) + 1
    kind = np.zeros(n, dtype=np.uint8)
    kind[list(homes)] = 1
    kinds = np.array([worlds.ACTIVITIES.index(k) for k in kinds], dtype=np.uint8)
    return worlds.World(
        age=np.array(age, dtype=np.uint8),
        sex=(np.arange(len(age)) % 2).astype(np.uint8),
        residence=residence,
        activity=np.array(activity, dtype=np.int32),
        residence_kind=kind,
        residence_area=np.zeros(n, np.int32) if areas is None else np.array(areas, dtype=np.int32),
        activity_kind=kinds,
        activity_residence=np.array(staff_of if staff_of is not None else [-1] * len(kinds), dtype=np.int32),
        latitude=51 + 0.1 * np.arange(places),
        longitude=np.zeros(places),
        borough=np.zeros(places, np.int32),
        area_names=tuple(f"a{i}" for i in range(places)),
        borough_names=("b",),
    )


def at_once(model, **values):
    """A model and parameters at which no venue infects but those that `values` name."""
    params = model.default_params.replace({f"log_beta_{v}": -30.0 for v in VENUES} | values)
    return model, params
