"""JUNE: forces of infection by hand, the course of the disease, closed forms of epidemics, and conservation."""

import datetime as dt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towns import MONDAY, at_once, make_world

import calibrant as cal
from calibrant import worlds
from calibrant._randomness import Randomness, as_seed
from calibrant.models.june import AGE_BANDS, LEISURE, VENUES, Calendar, Policy
from calibrant.models.june import _tables as tables
from calibrant.models.june._course import draw_course, infectiousness
from calibrant.models.june._expected import delay_distribution

SATURDAY = dt.date(2020, 3, 7)
June = cal.models.June


def _rng(phase="step", seed=0):
    return Randomness.of_step(as_seed(seed), phase, 1, cal.StraightThrough(), recorder=None)


# Six people: a family of three (one works, one is at school), a student alone, a resident of a care home and its carer.
SIX = {
    "age": [35, 33, 9, 20, 84, 40],
    "residence": [0, 0, 0, 1, 2, 3],
    "activity": [0, -1, 1, 2, -1, 3],
    "homes": [2],
    "kinds": ["company", "school", "university", "care home"],
    "staff_of": [-1, -1, -1, 2],
}


def force_by_hand(world, x, beta, weekend, near):
    """The definition, one person and venue at a time."""
    groups = tables.group_of(world.age, world.sex)
    attends = tables.attendance()[int(weekend)]
    members = {}
    for i in range(world.n_people):
        home = world.residence[i]
        members.setdefault(("care_home" if world.residence_kind[home] else "household", int(home)), []).append(i)
        a = world.activity[i]
        if a >= 0:
            kind = worlds.ACTIVITIES[world.activity_kind[a]]
            venue = int(world.activity_residence[a]) if kind == "care home" else int(a)
            members.setdefault((kind.replace(" ", "_"), venue), []).append(i)
    force = np.zeros(world.n_people)
    for (kind, _), who in members.items():
        contact = np.clip(1 / max(len(who) - 1, 1), 0, 1)
        for i in who:
            force[i] += beta[kind] * contact * sum(x[j] for j in who if j != i)
    for v in range(world.n_areas):
        who = [i for i in range(world.n_people) if world.area[i] in near[v]]
        contact = np.clip(1 / max(len(who) - 1, 1), 0, 1)
        for k, name in enumerate(LEISURE):
            attend = attends[groups[who], k]
            total = np.sum(attend * x[who])
            for i, a in zip(who, attend, strict=True):
                force[i] += beta[name] * contact * a * total
    return force


def _check_force(world, *, weekend=0.0, near=1, seed=0):
    model = June(world, Calendar(MONDAY, 1), leisure_areas=near)
    rng = np.random.default_rng(seed)
    beta = {name: 0.2 + rng.random() for name in VENUES}
    x = rng.random(world.n_people) * (rng.random(world.n_people) < 0.6)
    intensity, everywhere = {k: jnp.asarray(b) for k, b in beta.items()}, jnp.asarray(x)
    got = model._at_home_and_work(intensity, everywhere, everywhere)
    got += model.cells.spread(model._leisure(intensity, model.cells.sum(everywhere), weekend))
    expected = force_by_hand(world, x, beta, weekend, worlds.nearest_areas(world.latitude, world.longitude, near))
    # Among the leisure of a few thousand, oneself is not left out; here, among a few, it is added to the definition.
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weekend", [0.0, 1.0], ids=["a weekday", "a weekend"])
def test_the_force_of_infection_on_six_people_is_the_sum_by_hand(weekend):
    _check_force(make_world(**SIX), weekend=weekend)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"world {seed}")
def test_the_force_of_infection_in_a_random_world_is_the_sum_by_hand(seed):
    rng = np.random.default_rng(seed)
    n, n_homes = 60, 4
    residence = np.sort(rng.integers(0, 20, n))
    residence = np.unique(residence, return_inverse=True)[1]
    count = int(residence.max()) + 1
    homes = rng.choice(count, n_homes, replace=False)
    kinds = ["company", "school", "university", "company"] + ["care home"] * n_homes
    activity = rng.integers(-1, len(kinds), n)
    activity[np.isin(residence, homes)] = -1
    world = make_world(
        rng.integers(0, 100, n),
        residence,
        activity,
        homes=homes,
        kinds=kinds,
        staff_of=[-1] * 4 + homes.tolist(),
        areas=np.sort(rng.integers(0, 3, count)),
        places=3,
    )
    _check_force(world, near=2, seed=seed)


@pytest.mark.usefixtures("x64")
def test_the_probability_of_infection_is_that_of_its_formula():
    """One step: 1 - exp(-force), times what age and isolation make of it, against frequencies of draws."""
    world = make_world([30, 40, 50], [0, 0, 0], [-1, -1, -1])
    calendar = Calendar(MONDAY, 1, [Policy(MONDAY, venues=("household",), factor=0.5)])
    susceptibility = np.ones(len(AGE_BANDS))
    susceptibility[4] = 0.3
    model, params = at_once(June(world, calendar), log_beta_household=0.7, log_seed=-30.0)
    params = params.replace({"susceptibility": jnp.asarray(susceptibility)})
    inputs = jax.tree.map(lambda x: x[0], model.inputs)

    def one(seed):
        state = model.init(params, _rng("init"))
        state = eqx.tree_at(lambda s: s.infected_on, state, state.infected_on.at[0].set(-4.0))
        state = eqx.tree_at(lambda s: s.infected, state, state.infected.at[0].set(1.0))
        new = model.step(params, state, inputs, Randomness.of_step(seed, "step", 1, cal.Hard(), recorder=None))
        return new.infected, infectiousness(state.course, 5.0 * jnp.ones(3))[0][0]

    infected, x = jax.vmap(one)(cal.seeds(0, 40_000))
    force = 10**0.7 * 0.5 * 0.5 * float(x[0])
    expected = -np.expm1(-force * np.array([0.3, 1.0]))
    assert 0.1 < expected[1] < 0.95
    error = np.sqrt(expected * (1 - expected) / 40_000)
    assert np.all(np.abs(np.asarray(infected[:, 1:].mean(0)) - expected) < 4 * error)


def _courses(band, n=200_000, seed=1, **values):
    model = June(make_world([30], [0], [-1]), Calendar(MONDAY, 1))
    params = model.default_params.replace(values)
    return draw_course(params, jnp.full((n,), band), _rng(seed=seed))


@pytest.mark.parametrize("band", [0, 4, 7, 9], ids=lambda band: f"from {10 * band} years")
def test_severity_by_age_equals_the_tables(band):
    course = _courses(band)
    n = course.onset.shape[0]
    for got, table in (
        (course.symptomatic, tables.SYMPTOMATIC),
        (course.severe, tables.SEVERE),
        (course.dies, tables.DEATH),
    ):
        p = table[band]
        assert abs(float(jnp.mean(got)) - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_durations_equal_the_tables():
    course = _courses(9)

    def mean(m):
        return np.exp(m[0] + m[1] ** 2 / 2)

    def variance(m):
        return (np.exp(m[1] ** 2) - 1) * np.exp(2 * m[0] + m[1] ** 2)

    def check(x, stages, shift=0.0):
        expected = sum(map(mean, stages)) + shift
        sd = np.sqrt(sum(map(variance, stages)))
        assert abs(np.mean(x) - expected) < 5 * sd / np.sqrt(np.size(x)) + 0.01
        assert abs(np.std(x) / sd - 1) < 0.15

    to_onset = [tables.EXPOSED, tables.PRESYMPTOMATIC]
    to_admission = [*to_onset, tables.TO_ADMISSION]
    check(course.onset, to_onset)
    check(course.admission + 0.5, to_admission)
    dead = np.asarray(course.dies) > 0
    check(np.asarray(course.death)[dead] + 0.5, [*to_admission, tables.TO_CRITICAL, tables.TO_DEATH])
    assert np.all(np.floor(np.asarray(course.end)[dead]) == np.asarray(course.death)[dead])
    mild = (np.asarray(course.symptomatic) > 0) & (np.asarray(course.severe) == 0)
    check(np.asarray(course.end - course.onset)[mild], [tables.MILD_RECOVERY])
    silent = np.asarray(course.symptomatic) == 0
    check(np.asarray(course.end)[silent], [tables.EXPOSED, tables.MILD_RECOVERY])


def test_the_severity_parameter_shifts_the_log_odds_of_severe_disease():
    base, more = _courses(7), _courses(7, severity=1.0)
    p, q = float(jnp.mean(base.severe)) / tables.SYMPTOMATIC[7], float(jnp.mean(more.severe)) / tables.SYMPTOMATIC[7]
    np.testing.assert_allclose(np.log(q / (1 - q)) - np.log(p / (1 - p)), 1.0, atol=0.05)


@pytest.mark.usefixtures("x64")
def test_the_distribution_of_a_delay_is_that_of_the_sum_of_its_stages():
    stages = [tables.EXPOSED, tables.PRESYMPTOMATIC, tables.TO_ADMISSION]
    draws = np.random.default_rng(0)
    total = sum(np.exp(m + s * draws.normal(size=1_000_000)) for m, s in stages)
    got = np.asarray(delay_distribution(stages, 60))
    counted = np.bincount(np.floor(total).astype(int), minlength=60)[:60] / total.size
    error = np.sqrt(np.maximum(counted, 1e-6) / total.size)
    assert np.all(np.abs(got - counted) < 5 * error + 2e-4)
    assert abs(got.sum() - 1) < 0.01


def _total_infectiousness(n=4000, days=40, seed=5):
    """Sum over whole days of everybody's infectiousness, had all been infected at once."""
    course = _courses(3, n, seed=seed)
    return sum(np.asarray(infectiousness(course, float(d) * jnp.ones(n))[0]) for d in range(1, days))


def test_the_final_size_in_one_well_mixed_venue_solves_its_equation():
    """z = 1 - exp(-R0 z): Kermack and McKendrick 1927; a household of everybody."""
    n = 6000
    world = make_world(np.full(n, 35), np.zeros(n), np.full(n, -1))
    r0 = 1.8
    log_beta = np.log10(r0 / _total_infectiousness(60_000).mean())
    model, params = at_once(
        June(world, Calendar(MONDAY, 260)), log_beta_household=float(log_beta), log_seed=float(np.log10(0.01))
    )
    sizes = np.array([float(jnp.sum(cal.simulate(model, params, seed=s).outputs["infections"])) / n for s in range(4)])
    z = 0.7
    for _ in range(200):  # 1% are imported, the rest escape from them and from each other
        z = 1 - 0.99 * np.exp(-r0 * z)
    assert abs(sizes.mean() - z) < 4 * max(sizes.std(), 0.01) / 2


@pytest.mark.parametrize("size", [pytest.param(2, id="pairs"), pytest.param(3, id="threes", marks=pytest.mark.slow)])
def test_the_attack_rate_in_households_equals_the_chain_binomial(size):
    """Reed and Frost's chains with random infectiousness: Ball 1986, Advances in Applied Probability 18: 289."""
    n = 30_000
    world = make_world(np.full(n, 35), np.arange(n) // size, np.full(n, -1))
    beta, p = 1.2, 0.02
    model, params = at_once(
        June(world, Calendar(MONDAY, 80)), log_beta_household=float(np.log10(beta)), log_seed=float(np.log10(p))
    )
    outputs = [cal.simulate(model, params, seed=s).outputs["cumulative_infections"] for s in range(6)]
    got = np.array([float(x[-1]) for x in outputs]) / (n // size)
    x = _total_infectiousness(100_000)

    def escape(k):  # k people escape one infectious person
        return np.mean(np.exp(-k * beta / (size - 1) * x))

    # P(number ever infected | one or more imported), from the number imported on the first day.
    one, two = escape(1), escape(2)
    if size == 2:
        mean = {1: 2 - one, 2: 2.0}
    else:
        # From one: both escape; or one is infected, and the other escapes that one too.
        p1, p2 = two, 2 * (one - two) * one
        mean = {1: p1 + 2 * p2 + 3 * (1 - p1 - p2), 2: 2 + 1 - one**2, 3: 3.0}
    binomial = {1: size * p * (1 - p) ** (size - 1), 2: p**2 * (3 * (1 - p) if size == 3 else 1), 3: p**3}
    expected = sum(binomial[k] * m for k, m in mean.items())
    assert abs(got.mean() - expected) < 4 * max(got.std(ddof=1), 0.005 * expected) / np.sqrt(len(got))


@pytest.fixture(scope="module")
def town():
    return worlds.build_world(5_000, seed=1)


def test_people_are_neither_made_nor_lost(town):
    model = June(town, Calendar(MONDAY, 60), sampled=True, detail=True, regions="area")
    params = model.default_params.replace({"log_seed": -2.0, "log_beta_household": 0.9, "criticality": 3.0})
    out = {k: np.asarray(x) for k, x in cal.simulate(model, params, seed=2).outputs.items()}
    infected = out["cumulative_infections"]
    assert 0.3 * town.n_people < infected[-1] <= town.n_people
    assert np.all(out["infections"] >= 0)
    assert np.all(infected == np.cumsum(out["infections"]))  # exact: counts of people
    for name in ("infections", "prevalence", "admissions", "deaths"):
        assert np.all(out[name] == np.round(out[name]))
        np.testing.assert_array_equal(out[f"{name}_by_age"].sum(1), out[name])
        np.testing.assert_array_equal(out[f"{name}_by_region"].sum(1), out[name])
    assert np.all(out["prevalence"] <= infected)
    by_age = out["infections_by_age"].sum(0)
    bands = np.bincount(np.minimum(town.age // 10, 9), minlength=10)
    assert np.all(by_age <= bands)
    assert out["deaths"].sum() > 5
    assert out["deaths"].sum() <= out["admissions"].sum()


def test_no_infection_without_an_infectious_person(town):
    model = June(town, Calendar(MONDAY, 20))
    outputs = cal.simulate(model, model.default_params.replace({"log_seed": -40.0}), seed=0).outputs
    assert float(outputs["cumulative_infections"][-1]) == 0


def test_nobody_is_infected_twice():
    n = 500
    world = make_world(np.full(n, 35), np.zeros(n), np.full(n, -1))
    model, params = at_once(June(world, Calendar(MONDAY, 150)), log_beta_household=1.5, log_seed=-1.0)
    assert float(cal.simulate(model, params, seed=0).outputs["cumulative_infections"][-1]) == n


def test_every_age_has_a_group_and_a_band():
    ages = np.repeat(np.arange(121), 2)
    groups = tables.group_of(ages, np.tile([0, 1], 121))
    assert groups.min() == 0
    assert groups.max() == tables.N_GROUPS - 1
    np.testing.assert_array_equal(tables.BAND_OF_GROUP[groups], np.minimum(ages // 10, 9))
    attends = tables.attendance()
    j = LEISURE.index("pub")
    assert attends[0, tables.group_of(np.array([18]), np.array([0]))[0], j] == 0.0716
    assert attends[1, tables.group_of(np.array([66]), np.array([1]))[0], j] == 0.088
    care = attends[0, tables.group_of(np.array([74, 75, 85, 99]), np.ones(4, int)), LEISURE.index("care_visit")]
    assert care.tolist() == [0, 0.25, 0.5, 0.5]


def test_sampled_and_expected_series_agree_in_the_mean():
    n = 4000
    world = make_world(np.full(n, 75), np.zeros(n), np.full(n, -1))
    model, params = at_once(June(world, Calendar(MONDAY, 70), sampled=True), log_beta_household=0.6, log_seed=-1.5)
    params = params.replace({"severity": jnp.array(0.5), "fatality": jnp.array(0.7)})
    out = [cal.simulate(model, params, seed=s).outputs for s in range(24)]
    for sampled, expected in (("admissions", "expected_admissions"), ("deaths", "expected_deaths")):
        a = np.array([o[sampled] for o in out])
        b = np.array([o[expected] for o in out])
        difference = (a - b).reshape(24, 7, 10).sum(2)  # ten days at a time
        error = difference.std(0, ddof=1) / np.sqrt(24)
        assert a.sum() > 1000
        assert np.all(np.abs(difference.mean(0)) < 4 * error + 0.3)


def test_a_calendar_knows_weekends_policies_and_imports():
    calendar = Calendar(
        SATURDAY,
        4,
        [
            Policy(dt.date(2020, 3, 8), dt.date(2020, 3, 10), ("pub", "company"), 0.5),
            Policy(dt.date(2020, 3, 9), venues=("all",), factor="distance"),
            Policy(dt.date(2020, 3, 10), isolation=True),
        ],
        import_days=2,
    )
    inputs = calendar.inputs()
    company, pub, home = (VENUES.index(v) for v in ("company", "pub", "household"))
    assert inputs.weekend.tolist() == [1, 1, 0, 0]
    assert inputs.factor[:, company].tolist() == [0, 0, 0.5, 1]
    assert inputs.factor[:, pub].tolist() == [1, 0.5, 0.5, 1]
    assert inputs.free[:, home, 0].tolist() == [0, 0, 1, 1]
    assert inputs.isolation.tolist() == [0, 0, 0, 1]
    assert inputs.imports.tolist() == [0.5, 0.5, 0, 0]
    assert calendar.free_factors == ("distance",)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(
            lambda: Policy(MONDAY, venues=("bar",)), "no venue type 'bar'", id="a policy for an unknown kind of venue"
        ),
        pytest.param(lambda: Policy(MONDAY, MONDAY, ("pub",)), "ends", id="a policy that ends as it starts"),
        pytest.param(
            lambda: Policy(MONDAY, venues=("pub",), factor=-1.0), "at least 0", id="a policy with a negative factor"
        ),
        pytest.param(lambda: Policy(MONDAY), "does nothing", id="a policy that does nothing"),
        pytest.param(lambda: Calendar(MONDAY, 0), "at least one day", id="a calendar without a day"),
        pytest.param(
            lambda: June(make_world(**SIX), Calendar(MONDAY, 1), regions="county"), "'county'", id="an unknown region"
        ),
        pytest.param(
            lambda: June(make_world(**SIX), Calendar(MONDAY, 1), seeding=np.ones(3)),
            "`seeding`",
            id="a seeding of other areas",
        ),
        pytest.param(
            lambda: June(make_world(**SIX), Calendar(MONDAY, 1), leisure_areas=0),
            "leisure_areas",
            id="leisure in no area",
        ),
    ],
)
def test_an_impossible_june_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_isolation_and_closures_slow_an_epidemic(town):
    none = Policy(MONDAY, venues=("pub",), factor="f")  # one free factor in every calendar, so that all compile as one
    model = June(town, Calendar(MONDAY, 40, [none]))

    def size(policies, venues=("pub",), **values):
        calendar = Calendar(MONDAY, 40, [Policy(MONDAY, venues=venues, factor="f"), *policies])
        params = model.default_params.replace({"log_seed": -2.5, **values})
        out = [cal.simulate(model, params, seed=s, inputs=calendar.inputs()).outputs for s in range(3)]
        return np.mean([float(o["infections"].sum()) for o in out])

    free = size([])
    assert size([Policy(MONDAY, isolation=True)], compliance=1.0) < 0.9 * free
    assert size([Policy(MONDAY, venues=("school", "visit"), factor=0.0)]) < 0.9 * free
    assert size([], ("all",), log_contact=jnp.array([-1.0])) < 0.5 * free
