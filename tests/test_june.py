"""JUNE: forces of infection by hand, the course of the disease, closed forms of epidemics, and conservation."""

import datetime as dt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calibrant as cal
from calibrant import worlds
from calibrant._randomness import Randomness, as_seed
from calibrant.models.june import AGE_BANDS, LEISURE, VENUES, Calendar, Policy
from calibrant.models.june import _tables as tables
from calibrant.models.june._course import draw_course, infectiousness
from calibrant.models.june._expected import delay_distribution
from calibrant.models.june._june import _share_of_echo

MONDAY, SATURDAY = dt.date(2020, 3, 2), dt.date(2020, 3, 7)
June = cal.models.June


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
@pytest.mark.parametrize("weekend", [0.0, 1.0])
def test_the_force_on_six_people_by_hand(weekend):
    _check_force(make_world(**SIX), weekend=weekend)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
def test_the_force_in_random_worlds_by_hand(seed):
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


def _at_once(model, **values):
    params = model.default_params.replace({f"log_beta_{v}": -30.0 for v in VENUES} | values)
    return model, params


@pytest.mark.usefixtures("x64")
def test_the_probability_of_infection_by_hand():
    """One step: 1 - exp(-force), times what age and isolation make of it, against frequencies of draws."""
    world = make_world([30, 40, 50], [0, 0, 0], [-1, -1, -1])
    calendar = Calendar(MONDAY, 1, [Policy(MONDAY, venues=("household",), factor=0.5)])
    susceptibility = np.ones(len(AGE_BANDS))
    susceptibility[4] = 0.3
    model, params = _at_once(June(world, calendar), log_beta_household=0.7, log_seed=-30.0)
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


@pytest.mark.parametrize("band", [0, 4, 7, 9])
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


def test_severity_parameters_shift_log_odds():
    base, more = _courses(7), _courses(7, severity=1.0)
    p, q = float(jnp.mean(base.severe)) / tables.SYMPTOMATIC[7], float(jnp.mean(more.severe)) / tables.SYMPTOMATIC[7]
    np.testing.assert_allclose(np.log(q / (1 - q)) - np.log(p / (1 - p)), 1.0, atol=0.05)


@pytest.mark.usefixtures("x64")
def test_the_distribution_of_a_delay():
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


def test_final_size_in_one_well_mixed_venue():
    """z = 1 - exp(-R0 z): Kermack and McKendrick 1927; a household of everybody."""
    n = 6000
    world = make_world(np.full(n, 35), np.zeros(n), np.full(n, -1))
    r0 = 1.8
    log_beta = np.log10(r0 / _total_infectiousness(60_000).mean())
    model, params = _at_once(
        June(world, Calendar(MONDAY, 260)), log_beta_household=float(log_beta), log_seed=float(np.log10(0.01))
    )
    sizes = np.array([float(jnp.sum(cal.simulate(model, params, seed=s).outputs["infections"])) / n for s in range(4)])
    z = 0.7
    for _ in range(200):  # 1% are imported, the rest escape from them and from each other
        z = 1 - 0.99 * np.exp(-r0 * z)
    assert abs(sizes.mean() - z) < 4 * max(sizes.std(), 0.01) / 2


@pytest.mark.parametrize("size", [2, 3])
def test_attack_in_households_equals_the_chain_binomial(size):
    """Reed and Frost's chains with random infectiousness: Ball 1986, Advances in Applied Probability 18: 289."""
    n = 30_000
    world = make_world(np.full(n, 35), np.arange(n) // size, np.full(n, -1))
    beta, p = 1.2, 0.02
    model, params = _at_once(
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


def test_nobody_starts_again():
    n = 500
    world = make_world(np.full(n, 35), np.zeros(n), np.full(n, -1))
    model, params = _at_once(June(world, Calendar(MONDAY, 150)), log_beta_household=1.5, log_seed=-1.0)
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
    model, params = _at_once(June(world, Calendar(MONDAY, 70), sampled=True), log_beta_household=0.6, log_seed=-1.5)
    params = params.replace({"severity": jnp.array(0.5), "fatality": jnp.array(0.7)})
    out = [cal.simulate(model, params, seed=s).outputs for s in range(24)]
    for sampled, expected in (("admissions", "expected_admissions"), ("deaths", "expected_deaths")):
        a = np.array([o[sampled] for o in out])
        b = np.array([o[expected] for o in out])
        difference = (a - b).reshape(24, 7, 10).sum(2)  # ten days at a time
        error = difference.std(0, ddof=1) / np.sqrt(24)
        assert a.sum() > 1000
        assert np.all(np.abs(difference.mean(0)) < 4 * error + 0.3)


def test_weekends_and_policies():
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
        (lambda: Policy(MONDAY, venues=("bar",)), "no venue type 'bar'"),
        (lambda: Policy(MONDAY, MONDAY, ("pub",)), "ends"),
        (lambda: Policy(MONDAY, venues=("pub",), factor=-1.0), "at least 0"),
        (lambda: Policy(MONDAY), "does nothing"),
        (lambda: Calendar(MONDAY, 0), "at least one day"),
        (lambda: June(make_world(**SIX), Calendar(MONDAY, 1), regions="county"), "'county'"),
        (lambda: June(make_world(**SIX), Calendar(MONDAY, 1), seeding=np.ones(3)), "`seeding`"),
        (lambda: June(make_world(**SIX), Calendar(MONDAY, 1), leisure_areas=0), "leisure_areas"),
    ],
)
def test_bad_calendars_and_models_are_refused(make, match):
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


def _gradient(model, mode, horizon=None, names=("log_seed", "log_beta_household", "log_beta_company", "severity")):
    base = model.default_params.replace({"log_seed": -1.5})

    def objective(values):
        out = cal.simulate(model, base.replace(values), seed=4, mode=mode, horizon=horizon).outputs
        return jnp.sum(jnp.log1p(out["infections"])) + jnp.sum(out["expected_admissions"])

    values = {name: getattr(base, name) for name in names}
    return jax.jit(jax.value_and_grad(objective))(values)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("horizon", [cal.FullHorizon(), cal.SlidingHorizon(0)], ids=["full", "direct"])
def test_modes_agree_on_june(horizon):
    world = worlds.build_world(400, seed=2)
    model = June(world, Calendar(MONDAY, 10))
    value, expected = _gradient(model, cal.ReverseMode(), horizon)
    for mode in (cal.HybridMode(), cal.HybridMode(chunk=3), cal.CheckpointedReverseMode()):
        got_value, got = _gradient(model, mode, horizon)
        assert got_value == value
        for name, g in got.items():
            assert expected[name] != 0
            np.testing.assert_allclose(g, expected[name], rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_a_batch_is_differentiated_like_each_alone():
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 10))
    loss = cal.losses.Streams({"cumulative_infections": cal.losses.LogMeanSquaredError()})
    problem = cal.Problem(model, {"cumulative_infections": jnp.arange(1.0, 11.0)}, loss)
    values = {"log_seed": jnp.array([-1.5, -1.0, -1.2]), "log_beta_household": jnp.array([0.6, 0.5, 0.2])}
    words = cal.seeds(4, (3, 1))

    def gradient(values, words, **how):
        return jax.jit(jax.grad(lambda v: jnp.sum(cal.expect(problem, v, seeds=words, **how).losses)))(values)

    alone = [gradient({k: x[i : i + 1] for k, x in values.items()}, words[i : i + 1]) for i in range(3)]
    for mode in (cal.ReverseMode(), cal.CheckpointedReverseMode(), cal.HybridMode()):
        for at_once in (None, 2):
            together = gradient(values, words, mode=mode, simulations_at_once=at_once)
            for name, g in together.items():
                np.testing.assert_allclose(g, jnp.concatenate([x[name] for x in alone]), rtol=1e-8)
                assert np.all(g != 0)


def test_echoes_in_a_group_add_up_to_an_outbreak():
    """What a derivative repeats, s R + (s R)^2 + ..., is the expected number of others infected."""
    total = 1.10
    for others, reproduction in ((1, 0.3), (1, 5.0), (3, 0.8), (3, 20.0), (49, 3.0)):
        share = _share_of_echo(jnp.array([reproduction / total]), jnp.array([1 / others]))
        once = float(share[0]) * reproduction
        assert once < 1
        a = 0.5
        for _ in range(200):  # the equation of the final size
            a = 1 - np.exp(-reproduction / others * (1 + (others - 1) * a))
        np.testing.assert_allclose(once / (1 - once), others * a, rtol=0.02)
    # In a pair it is exact: the other is infected or not.
    share = _share_of_echo(jnp.array([2.0 / total]), jnp.array([1.0]))
    once = 2 * float(share[0])
    np.testing.assert_allclose(once / (1 - once), 1 - np.exp(-2), rtol=1e-5)
    # A rare infection is repeated as it is.
    np.testing.assert_allclose(_share_of_echo(jnp.array([1e-3]), jnp.array([0.25])), 1, rtol=0.01)


def test_the_full_derivative_stays_bounded_where_households_repeat():
    """One import more infects two people of a pair at most, though in a derivative they infect each other for ever."""
    n = 300  # pairs; nothing spreads outside them
    world = make_world([30] * (2 * n), np.repeat(np.arange(n), 2), [-1] * (2 * n))
    model, params = _at_once(June(world, Calendar(MONDAY, 60)))

    def infected(log_seed, log_beta):
        how: dict = {"mode": cal.CheckpointedReverseMode(), "horizon": cal.FullHorizon()}
        params_ = params.replace({"log_beta_household": log_beta, "log_seed": log_seed})
        return cal.simulate(model, params_, seed=1, **how).outputs["cumulative_infections"][-1] / (2 * n)

    imports = np.log(10) * 0.1  # derivative of the imported share in log_seed, at 0.1
    for log_beta in (0.0, 1.0, 2.0):
        slope = float(jax.jit(jax.grad(infected))(jnp.array(-1.0), jnp.array(log_beta)))
        assert 0.5 * imports < slope < 2.2 * imports


def test_a_jacobian_and_its_chunks_are_equal_to_the_bit():
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 10))
    names = [name for name, info in model.Params.describe().items() if info.prior is not None]
    base = model.default_params.replace({"log_seed": -1.5})

    def jacobian(chunk):
        def infections(values):
            params = base.replace(dict(zip(names, values, strict=True)))
            how: dict = {"mode": cal.HybridMode(chunk=chunk), "horizon": cal.SlidingHorizon(0)}
            return cal.simulate(model, params, seed=4, **how).outputs["infections"]

        return jax.jit(jax.jacrev(infections))(jnp.stack([getattr(base, name) for name in names]))

    whole = jacobian(None)
    assert np.count_nonzero(whole) > whole.size / 2
    for chunk in (None, 1, 4):
        np.testing.assert_array_equal(jacobian(chunk), whole)


@pytest.mark.usefixtures("x64")
def test_expected_series_have_exact_gradients():
    """Severity and delays act after the scan: under any horizon their derivative is that of finite differences."""
    model = June(worlds.build_world(400, seed=2), Calendar(MONDAY, 25))
    base = model.default_params.replace({"log_seed": -1.0})

    def deaths(v):
        params = base.replace({"severity": v[0], "fatality": v[1], "admission_delay": v[2], "death_delay": v[3]})
        out = cal.simulate(model, params, seed=4, mode=cal.HybridMode(), horizon=cal.SlidingHorizon(0)).outputs
        return jnp.sum(jnp.sin(jnp.arange(25) / 9) * (out["expected_deaths"] * 100 + out["expected_admissions"]))

    v, h = jnp.zeros(4), 1e-5
    got = jax.grad(deaths)(v)
    for i in range(4):
        d = (deaths(v.at[i].add(h)) - deaths(v.at[i].add(-h))) / (2 * h)
        np.testing.assert_allclose(got[i], d, rtol=1e-6)
