"""Worlds: they match what they were built to match, survive a file, and refuse what is no world."""

import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from calibrant import worlds
from calibrant.worlds import _facts as facts

DATA = Path(os.environ.get("CALIBRANT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def city():
    return worlds.build_world(60_000, seed=3)


def _shares_of_ages(world, area=None):
    age = world.age if area is None else world.age[world.area == area]
    return np.histogram(age, [*facts.AGE_BANDS, 121])[0] / age.size


def test_a_built_city_matches_its_marginals(city):
    known = facts.AGE_COUNTS / facts.AGE_COUNTS.sum()
    assert abs(city.n_people / 60_000 - 1) < 0.01
    np.testing.assert_allclose(_shares_of_ages(city), known, atol=0.001)
    sizes = np.bincount(city.residence)[city.residence_kind == 0]
    assert abs(np.mean(sizes == 1) - 0.316) < 0.005
    assert 2.4 < sizes.mean() < 2.6
    assert 0.03 < np.mean(sizes >= 6) < 0.06
    of_kind = np.where(city.activity >= 0, city.activity_kind[city.activity], 99)
    assert np.all(of_kind[(city.age >= 5) & (city.age <= 16)] == worlds.ACTIVITIES.index("school"))
    assert 0.32 < np.mean(of_kind == 0) < 0.38
    companies = np.bincount(city.activity[city.activity >= 0], minlength=city.n_activities)[city.activity_kind == 0]
    assert abs(np.mean(companies < 10) - 0.87) < 0.03
    in_care = city.residence_kind[city.residence] == 1
    assert abs(in_care.mean() - facts.CARE_RESIDENTS) < 0.001
    assert city.age[in_care].mean() > 75
    assert np.all(city.activity[in_care] == -1)


def test_an_adult_heads_every_household_and_parents_are_older_than_children(city):
    starts = np.flatnonzero(np.diff(city.residence, prepend=-1) != 0)
    first = city.age[starts]
    assert first[city.residence_kind[city.residence[starts]] == 0].min() >= 15  # an adult heads every household
    sizes = np.diff(np.append(starts, city.n_people))
    children = city.age[starts[sizes >= 3] + 2]
    parents = city.age[starts[sizes >= 3]]
    minors = children < 16
    assert np.corrcoef(children[minors], parents[minors])[0, 1] > 0.3
    assert np.mean(parents[minors] < children[minors] + 15.0) < 0.05


def test_areas_are_built_with_their_own_shares_of_ages():
    base = worlds.synthetic_areas(30_000, np.random.default_rng(0))
    young = np.linspace(1.3, 0.7, facts.AGE_BANDS.size)
    ages = np.stack([row * (young if i % 2 else young[::-1]) for i, row in enumerate(base.ages)])
    world = worlds.build_world(30_000, seed=0, areas=dataclasses.replace(base, ages=ages))
    for i in range(world.n_areas):
        np.testing.assert_allclose(_shares_of_ages(world, i), ages[i] / ages[i].sum(), atol=0.01)


def test_the_same_seed_builds_the_same_world():
    a, b, c = (worlds.build_world(2_000, seed=s) for s in (5, 5, 6))
    for field in dataclasses.fields(a):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name))
    assert not np.array_equal(a.age, c.age)


def test_a_world_is_read_from_its_file_as_it_was_written(city, tmp_path):
    city.save(tmp_path / "city.h5")
    again = worlds.World.load(tmp_path / "city.h5")
    for field in dataclasses.fields(city):
        x, y = getattr(city, field.name), getattr(again, field.name)
        assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
    assert [p.name for p in tmp_path.iterdir()] == ["city.h5"]


def _write_text(path):
    path.write_text("no")


def _write_numbers(path):
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _write_old_world(path):
    worlds.build_world(200).save(path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 0


@pytest.mark.parametrize(
    ("write", "read", "match"),
    [
        pytest.param(_write_text, worlds.World.load, "cannot be read", id="text"),
        pytest.param(_write_numbers, worlds.World.load, "no world of calibrant", id="other numbers"),
        pytest.param(
            _write_numbers, worlds.import_june, "no world file of JUNE", id="other numbers for a world of JUNE"
        ),
        pytest.param(_write_old_world, worlds.World.load, "version 0", id="a world of an old version"),
    ],
)
def test_a_file_that_is_no_world_is_refused(write, read, match, tmp_path):
    write(tmp_path / "file.h5")
    with pytest.raises(worlds.WorldError, match=match):
        read(tmp_path / "file.h5")


@pytest.mark.parametrize(
    ("field", "change", "match"),
    [
        pytest.param("age", lambda x: x.astype(float), "`age` of a world is uint8", id="ages in real numbers"),
        pytest.param(
            "sex",
            lambda x: x + np.uint8(2),
            "`sex` of a world must lie from 0 to 1",
            id="sexes that are neither 0 nor 1",
        ),
        pytest.param("residence", lambda x: x[::-1].copy(), "ascending", id="people out of the order of residences"),
        pytest.param(
            "activity", lambda x: x + np.int32(10_000), "`activity` of a world must lie", id="activities nowhere"
        ),
        pytest.param("residence_area", lambda x: x[:-1], "arrays of one length", id="a residence without an area"),
        pytest.param("latitude", lambda x: x * np.nan, "finite", id="areas without a place"),
        pytest.param("area_names", lambda x: x[:-1], "one name an area", id="an area without a name"),
        pytest.param("activity_residence", lambda x: np.zeros_like(x), "care home.s staff", id="staff of households"),
    ],
)
def test_a_world_that_does_not_hold_together_is_refused(field, change, match):
    world = worlds.build_world(500)
    with pytest.raises(worlds.WorldError, match=match):
        dataclasses.replace(world, **{field: change(getattr(world, field))})


def test_a_world_too_small_to_build_is_refused():
    with pytest.raises(worlds.WorldError, match="at least 100"):
        worlds.build_world(50)


def test_the_nearest_areas_are_those_by_distance():
    latitude, longitude = np.array([51.0, 51.1, 52.0, 51.0]), np.array([0.0, 0.0, 0.0, 0.1])
    near = worlds.nearest_areas(latitude, longitude, 2)
    assert near.tolist() == [[0, 3], [1, 0], [2, 1], [3, 0]]
    km = worlds.distances_km(latitude, longitude)
    np.testing.assert_allclose(km[0, 1], 11.12, rtol=1e-3)
    assert np.all(np.diag(km) == 0)


def _june_file(path, specs, ids):
    """A tiny file in JUNE's format: five people in two areas."""
    with h5py.File(path, "w") as file:
        p = file.create_group("population")
        p["age"] = np.array([30, 5, 80, 82, 40])
        p["sex"] = np.array([b"f", b"m", b"f", b"m", b"f"])
        p["super_area"] = np.array([1, 1, 0, 0, 0])
        p["group_specs"] = np.array(specs, dtype="S20")
        p["group_ids"] = np.array(ids)
        g = file.create_group("geography")
        g["super_area_name"] = np.array([b"here", b"there"])
        g["super_area_coordinates"] = np.array([[51.0, 0.0], [51.2, 0.1]])
        g["super_area_region"] = np.array([0, 1])
        g["region_name"] = np.array([b"north", b"south"])


def _five_people():
    """What each of five people belongs to, and which one of its kind."""
    blank = b" "
    specs = [
        [b"household", b"company"],
        [b"household", b"school"],
        [b"care_home", blank],
        [b"care_home", blank],
        [b"household", b"care_home"],
    ]
    return specs, [[7, 3], [7, 0], [0, -999], [0, -999], [9, 0]]


def test_a_world_of_june_is_imported_with_its_residences_and_activities(tmp_path):
    _june_file(tmp_path / "june.h5", *_five_people())
    world = worlds.import_june(tmp_path / "june.h5")
    assert world.n_people == 5
    assert world.age.tolist() == [40, 80, 82, 30, 5]  # sorted by area and residence, households first
    assert world.residence.tolist() == [0, 1, 1, 2, 2]
    assert world.residence_kind.tolist() == [0, 1, 0]
    assert [worlds.ACTIVITIES[world.activity_kind[i]] if i >= 0 else "" for i in world.activity] == [
        "care home",
        "",
        "",
        "company",
        "school",
    ]
    assert world.activity_residence[world.activity[0]] == 1
    assert world.about["left_out"] == "nobody"


def test_activities_of_june_that_the_model_does_not_know_are_left_out_and_counted(tmp_path):
    specs, ids = _five_people()
    specs[0][1], specs[2][0] = b"hospital", b"household"
    specs[3][0] = b"household"  # now the care home has staff and no residents
    _june_file(tmp_path / "june.h5", specs, ids)
    world = worlds.import_june(tmp_path / "june.h5")
    assert world.about["left_out"] == "1 in hospital"
    assert world.residence_kind.tolist().count(1) == 1


def test_a_residence_of_june_that_the_model_does_not_know_is_refused(tmp_path):
    specs, ids = _five_people()
    specs[0][0] = b"tent"
    _june_file(tmp_path / "june.h5", specs, ids)
    with pytest.raises(worlds.WorldError, match="'tent'"):
        worlds.import_june(tmp_path / "june.h5")


@pytest.mark.skipif(not (DATA / "june_world").is_dir(), reason="the world file of JUNE is not at hand")
def test_the_published_world_of_june_is_imported_whole():
    world = worlds.import_june(DATA / "june_world" / "june_world.h5")
    assert world.n_people == 769
    homes = np.bincount(world.residence_kind[world.residence])
    assert homes.tolist() == [745, 24]
    kinds = np.bincount(world.activity_kind[world.activity[world.activity >= 0]])
    assert dict(zip(worlds.ACTIVITIES, kinds.tolist(), strict=True)) == {
        "company": 333,
        "school": 78,
        "university": 43,
        "care home": 3,
    }
    assert world.about["left_out"] == "38 in hospital"


@pytest.mark.skipif(not (DATA / "london").is_dir(), reason="the atlas of London is not at hand")
def test_a_built_london_has_the_people_of_its_boroughs():
    areas = worlds.read_atlas(
        DATA / "london" / "london_msoa_atlas.csv", DATA / "london" / "london_msoa2011_centroids.csv"
    )
    assert len(areas.names) == 983
    assert len(areas.borough_names) == 33
    world = worlds.build_world(100_000, areas=areas)
    shares = np.bincount(world.borough[world.area], minlength=33) / world.n_people
    known = np.array([areas.ages[areas.borough == b].sum() for b in range(33)]) / areas.ages.sum()
    np.testing.assert_allclose(shares, known, atol=0.001)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        pytest.param("a.csv", "no column", id="without its columns"),
        pytest.param("none.csv", "cannot be read", id="that is not there"),
    ],
)
def test_an_atlas_is_refused(name, match, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(worlds.WorldError, match=match):
        worlds.read_atlas(tmp_path / name, tmp_path / "a.csv")


def test_a_world_has_a_table_of_its_people_and_a_picture(city):
    rows = {name: here for name, here, _ in worlds.summary(city)}
    assert rows["people"] == f"{city.n_people:,}"
    assert len(worlds.figure(city).axes) == 5
