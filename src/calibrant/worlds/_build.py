"""Synthetic towns and cities, built area by area to the marginals of a census.

Households come first: their kinds and sizes area by area, then roles in them, then ages given roles by iterative
proportional fitting, so that the ages of an area match its census while parents are older than their children. Then
schools by age and distance, universities, workplaces by commuting, companies with a heavy tail of sizes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from calibrant.worlds import _facts as facts
from calibrant.worlds._world import ACTIVITIES, RESIDENCES, World, WorldError, distances_km

_ROLES = ("single", "partner", "parent", "lone parent", "child", "grown child", "other adult", "other", "care")
_SINGLE, _PARTNER, _PARENT, _LONE, _CHILD, _GROWN, _ADULT, _OTHER, _CARE = range(len(_ROLES))
Progress = Callable[[str], None]
#: Building takes some 110 bytes a person.
MAX_PEOPLE = 200_000_000


@dataclasses.dataclass(frozen=True)
class Areas:
    """What is known of each area: where it is, who lives there, and how strongly it draws workers.

    `ages` counts people by `AGE_BANDS`, `households` by kind, of shapes (areas, bands) and (areas, kinds); `jobs` is
    relative.
    """

    names: tuple[str, ...]
    latitude: np.ndarray
    longitude: np.ndarray
    borough: np.ndarray
    borough_names: tuple[str, ...]
    ages: np.ndarray
    households: np.ndarray
    jobs: np.ndarray
    source: str

    def scaled_to(self, size: int) -> "Areas":
        """The same city with `size` people."""
        factor = size / self.ages.sum()
        return dataclasses.replace(self, ages=self.ages * factor, households=self.households * factor)


def synthetic_areas(size: int, rng: np.random.Generator) -> Areas:
    """A round city of London's density and average composition, densest with jobs at its centre."""
    n = max(1, round(size / facts.AREA_SIZE))
    radius = np.sqrt(size / facts.DENSITY / np.pi)
    r = radius * np.sqrt((np.arange(n) + 0.5) / n)  # a sunflower: even density
    angle = np.arange(n) * np.pi * (3 - np.sqrt(5))
    km_per_degree = 111.2
    latitude = 51.5 + r * np.sin(angle) / km_per_degree
    longitude = -0.1 + r * np.cos(angle) / (km_per_degree * np.cos(np.radians(51.5)))
    # Boroughs: sectors of rings with about equal numbers of areas.
    boroughs = max(1, round(n / facts.AREAS_PER_BOROUGH))
    rings = max(1, round(np.sqrt(boroughs / np.pi)))
    ring = np.minimum((r / radius * rings).astype(int), rings - 1)
    sectors = np.maximum(1, np.round(boroughs * (2 * np.arange(rings) + 1) / rings**2)).astype(int)
    sector = ((angle / (2 * np.pi)) % 1 * sectors[ring]).astype(int)
    borough = (np.concatenate([[0], np.cumsum(sectors)])[ring] + sector).astype(np.int32)
    used, borough = np.unique(borough, return_inverse=True)
    weight = np.exp(rng.normal(0, facts.AREA_LOG_SD, n))[:, None]
    near = np.exp(-r / (facts.CENTRE_RADIUS * radius + 1e-9))
    return Areas(
        names=tuple(f"area {i + 1:04d}" for i in range(n)),
        latitude=latitude,
        longitude=longitude,
        borough=borough.astype(np.int32),
        borough_names=tuple(f"borough {i + 1:02d}" for i in range(len(used))),
        ages=weight * facts.AGE_COUNTS,
        households=weight * facts.HOUSEHOLD_COUNTS,
        jobs=weight[:, 0] * (1 + facts.CENTRE_JOBS * near),
        source="a round city with the mean composition of London's areas",
    ).scaled_to(size)


def build_world(size: int, *, seed: int = 0, areas: Areas | None = None, progress: Progress | None = None) -> World:
    """A synthetic population.

    **Arguments:** `size`, people; `seed`; `areas`, those of a real city (`read_atlas`), by default a round one made up;
    `progress`, called with what is being done.

    **Raises:** `WorldError` for a size below 100, where shares of the census mean nothing.
    """
    if not 100 <= size <= MAX_PEOPLE:
        raise WorldError(f"A built world has at least 100 people and at most {MAX_PEOPLE:,}, got {size:,}.")
    progress = progress or (lambda _: None)
    rng = np.random.default_rng(seed)
    areas = synthetic_areas(size, rng) if areas is None else areas.scaled_to(size)
    progress("households")
    kind, area, roles, residence = _households(areas, rng)
    progress("ages")
    age = _ages(areas, area[residence], roles, rng)
    age = _match_couples(age, roles, residence, area[residence], rng)
    age = _match_children(age, roles, residence, area[residence], rng)
    sex = _sexes(age, roles, residence, rng)
    progress("schools and work")
    can_go_out = kind[residence] == RESIDENCES.index("household")
    activity, activity_kind, activity_residence = _activities(areas, age, area[residence], can_go_out, kind, area, rng)
    progress("done")
    return World(
        age=age.astype(np.uint8),
        sex=sex.astype(np.uint8),
        residence=residence.astype(np.int32),
        activity=activity.astype(np.int32),
        residence_kind=kind.astype(np.uint8),
        residence_area=area.astype(np.int32),
        activity_kind=activity_kind.astype(np.uint8),
        activity_residence=activity_residence.astype(np.int32),
        latitude=areas.latitude,
        longitude=areas.longitude,
        borough=areas.borough,
        area_names=areas.names,
        borough_names=areas.borough_names,
        about={"source": areas.source, "seed": str(seed), "size": str(size)},
    )


def _whole(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers with the same cumulative sums to within one: systematic rounding."""
    edges = np.floor(np.cumsum(x.ravel()) + rng.uniform()).astype(np.int64)
    return np.diff(edges, prepend=0).reshape(x.shape)


def _households(areas: Areas, rng: np.random.Generator):
    """Residences, sorted by area, and the people in them with their roles.

    Returns kind and area of each residence, role and residence of each person.
    """
    n_areas = len(areas.names)
    people = areas.ages.sum(1)
    counts = _whole(areas.households, rng)  # (areas, kinds)
    beds = _whole(people * facts.CARE_RESIDENTS / facts.CARE_HOME_SIZE, rng)  # homes
    care_residents = np.minimum(rng.poisson(facts.CARE_HOME_SIZE, beds.sum()), people.sum()).astype(np.int64)
    per_area = np.concatenate([counts, beds[:, None]], axis=1)
    form = np.repeat(np.tile(np.arange(6), n_areas), per_area.ravel())  # household kind; 5 is a care home
    area = np.repeat(np.arange(n_areas), per_area.sum(1))

    adults = np.select([form == 0, form == 3, form == 5], [1, 1, 0], default=2)
    extra = np.zeros(form.size, dtype=np.int64)
    for which, table in ((2, facts.CHILDREN_OF_COUPLE), (3, facts.CHILDREN_OF_LONE_PARENT)):
        chosen = form == which
        extra[chosen] = 1 + rng.choice(len(table), chosen.sum(), p=table / table.sum())
    couples = form == 1
    extra[couples] = rng.random(couples.sum()) < facts.GROWN_CHILD
    extra[form == 5] = care_residents
    # Whoever is still missing from an area lives in its households of the kind "other".
    missing = np.maximum(0, _whole(people, rng) - np.bincount(area, adults + extra, n_areas).astype(np.int64))
    others = np.flatnonzero(form == 4)
    starts = np.searchsorted(area[others], np.arange(n_areas + 1))
    room = np.diff(starts)
    who = np.repeat(np.arange(n_areas), np.where(room > 0, missing, 0))
    hosts = others[starts[who] + (rng.random(who.size) * room[who]).astype(np.int64)]
    extra += np.bincount(hosts, minlength=form.size)

    size = adults + extra
    residence = np.repeat(np.arange(form.size), size)
    position = np.arange(residence.size) - np.repeat(np.cumsum(size) - size, size)
    f = form[residence]
    adult = position < adults[residence]
    roles = np.select(
        [f == 0, f == 5, adult & (f == 1), adult & (f == 2), adult & (f == 3), adult, f == 1, f == 2, f == 3],
        [_SINGLE, _CARE, _PARTNER, _PARENT, _LONE, _ADULT, _GROWN, _CHILD, _CHILD],
        default=_OTHER,
    )
    grown = (f == 3) & ~adult & (rng.random(f.size) > facts.LONE_PARENT_DEPENDENT)
    roles[grown] = _GROWN
    return (form == 5).astype(np.int64) * RESIDENCES.index("care home"), area, roles, residence


def _preferences() -> np.ndarray:
    """How likely a role is at an age, before the ages of an area are matched: (roles, bands)."""
    a = facts.AGE_BANDS + 2.5

    def bump(low, high, soft=2.0):
        return 1 / (1 + np.exp(-(a - low) / soft)) / (1 + np.exp((a - high) / soft))

    w = np.zeros((len(_ROLES), a.size))
    w[_SINGLE] = bump(25, 110, 4) * (1 + (a > 65))
    w[_PARTNER] = bump(24, 95, 3) * (0.4 + (a > 50))
    w[_PARENT] = bump(28, 54, 3)
    w[_LONE] = bump(24, 60, 5)
    w[_CHILD] = (a < 15) + 0.75 * ((a > 15) & (a < 20))
    w[_GROWN] = bump(18, 45, 3)
    w[_ADULT] = bump(20, 75, 3) * (1 + (a < 35))
    w[_OTHER] = 0.15 * (a < 20) + bump(17, 65, 3)
    w[_CARE] = np.where(a < 65, 0.002 * (a > 18), np.exp((a - 85) / 7))
    adult_only = np.array([_SINGLE, _PARTNER, _PARENT, _LONE, _ADULT, _GROWN])
    w[np.ix_(adult_only, a < 15)] = 0
    return w + 1e-12


def _ages(areas: Areas, area: np.ndarray, roles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ages given roles: iterative proportional fitting of (role, band) in every area, then stratified draws."""
    n_areas, n_roles = len(areas.names), len(_ROLES)
    group = area * n_roles + roles
    counts = np.bincount(group, minlength=n_areas * n_roles).reshape(n_areas, n_roles).astype(float)
    target = areas.ages * (counts.sum(1) / areas.ages.sum(1))[:, None]
    table = np.broadcast_to(_preferences(), (n_areas, n_roles, target.shape[1])) * counts[:, :, None]
    for _ in range(60):
        table = table * (target / np.maximum(table.sum(1), 1e-9))[:, None, :]
        table = table * (counts / np.maximum(table.sum(2), 1e-9))[:, :, None]
    share = table / np.maximum(table.sum(2, keepdims=True), 1e-9)
    cumulative = np.cumsum(share, axis=2).reshape(n_areas * n_roles, -1)
    cumulative[:, -1] = 1 + 1e-9
    # Stratified: the person of rank r among n of a group draws from ((r, r + 1) / n), in random order.
    order = np.argsort(group + rng.random(group.size), kind="stable")
    size = np.bincount(group, minlength=n_areas * n_roles)
    rank = np.empty(group.size)
    rank[order] = np.arange(group.size) - np.repeat(np.cumsum(size) - size, size)
    u = (rank + rng.random(group.size)) / size[group]
    flat = (cumulative + np.arange(cumulative.shape[0])[:, None]).ravel()
    band = np.searchsorted(flat, u + group, side="right") - group * cumulative.shape[1]
    band = np.clip(band, 0, target.shape[1] - 1)
    age = facts.AGE_BANDS[band] + rng.integers(0, 5, band.size)
    last = band == target.shape[1] - 1
    age[last] = 90 + np.minimum(rng.geometric(0.3, last.sum()) - 1, 14)
    # Dependent children are under 19.
    young = roles == _CHILD
    age[young] = np.minimum(age[young], 18)
    return age


def _pair_up(values: np.ndarray, slots: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rearrange `values` within each group so that they are ordered as `slots` are."""
    out = np.empty_like(values)
    out[np.lexsort((slots, group))] = values[np.lexsort((values, group))]
    return out


def _match_couples(age, roles, residence, area, rng):
    """Partners have similar ages: within an area and kind, one partner's age follows the other's rank."""
    age = age.copy()
    first = np.flatnonzero(np.isin(roles, (_PARTNER, _PARENT)) & (np.diff(residence, prepend=-1) != 0))
    second = first + 1
    group = area[first] * len(_ROLES) + roles[first]
    age[second] = _pair_up(age[second], age[first] + rng.normal(0, 4, first.size), group)
    return age


def _match_children(age, roles, residence, area, rng):
    """Older children have older parents, and grown children parents who could have had them."""
    age = age.copy()
    starts = np.flatnonzero(np.diff(residence, prepend=-1) != 0)
    parent = age[starts[residence]]
    for role in (_CHILD, _GROWN):
        who = np.flatnonzero(roles == role)
        age[who] = _pair_up(age[who], parent[who] + rng.normal(0, 3, who.size), area[who])
    return age


def _sexes(age, roles, residence, rng):
    """0 female, 1 male. Couples are of opposite sex with probability 0.98; women outnumber men among the old."""
    female = np.where(age < 60, 0.5, 0.5 + 0.16 * np.clip((age - 60) / 30, 0, 1))
    sex = (rng.random(age.size) > female).astype(np.int64)
    first = np.flatnonzero(np.isin(roles, (_PARTNER, _PARENT)) & (np.diff(residence, prepend=-1) != 0))
    same = rng.random(first.size) > 0.98
    sex[first] = rng.random(first.size) < 0.5
    sex[first + 1] = np.where(same, sex[first], 1 - sex[first])
    return sex


class _Venues:
    """Main activities as they are founded."""

    def __init__(self):
        self.kinds: list[np.ndarray] = []
        self.residences: list[np.ndarray] = []
        self.count = 0

    def found(self, kind: str, n: int, residences: np.ndarray | None = None) -> np.ndarray:
        """Ids of `n` new venues."""
        self.kinds.append(np.full(n, ACTIVITIES.index(kind), dtype=np.int64))
        self.residences.append(np.full(n, -1, dtype=np.int64) if residences is None else residences)
        self.count += n
        return np.arange(self.count - n, self.count)


def _activities(areas: Areas, age, area, can_go_out, residence_kind, residence_area, rng):
    venues = _Venues()
    activity = np.where(can_go_out, -1, -2)  # residents of care homes stay
    km = distances_km(areas.latitude, areas.longitude)
    pupils_of = _schools(areas, age, area, activity, venues, km, rng)
    _universities(areas, age, area, activity, venues, km, rng)
    _work(areas, age, area, activity, venues, km, residence_kind, residence_area, pupils_of, rng)
    activity = np.maximum(activity, -1)
    return activity, np.concatenate(venues.kinds), np.concatenate(venues.residences)


def _schools(areas, age, area, activity, venues, km, rng) -> list[tuple[int, int, int]]:
    """Pupils go to one of the three nearest schools of their phase. Returns (school, area, teachers) of each."""
    staff = []
    n_areas = len(areas.names)
    attends = (activity == -1) & (
        rng.random(age.size) < np.array([facts.AT_SCHOOL.get(a, 0.0) for a in range(130)])[age]
    )
    for (low, high), size, ratio in facts.SCHOOLS.values():
        pupils = np.flatnonzero(attends & (age >= low) & (age < high))
        if not pupils.size:
            continue
        here = np.bincount(area[pupils], minlength=n_areas)
        n = max(1, round(pupils.size / size))
        # Schools stand where pupils are: every 1/n-th of them.
        where = np.searchsorted(np.cumsum(here), (np.arange(n) + rng.uniform()) * pupils.size / n, side="right")
        where = np.minimum(where, n_areas - 1)
        ids = venues.found("school", n)
        k = min(3, n)
        jitter = rng.uniform(0, 0.5, n)  # km, so that schools of one area are told apart
        nearest = np.argsort(km[:, where] + jitter, axis=1)[:, :k]
        share = np.array([0.6, 0.25, 0.15])[:k]
        choice = rng.choice(k, pupils.size, p=share / share.sum())
        school = nearest[area[pupils], choice]
        activity[pupils] = ids[school]
        taught = np.bincount(school, minlength=n)
        staff += [(int(ids[i]), int(where[i]), round(taught[i] / ratio)) for i in range(n)]
    return staff


def _universities(areas, age, area, activity, venues, km, rng):
    studies = (activity == -1) & (rng.random(age.size) < facts.steps_of(facts.AT_UNIVERSITY, age))
    students = np.flatnonzero(studies)
    if not students.size:
        return
    n = max(1, round(students.size / facts.UNIVERSITY_SIZE))
    where = rng.choice(len(areas.names), n, p=areas.jobs / areas.jobs.sum(), replace=n > len(areas.names))
    ids = venues.found("university", n)
    pull = rng.lognormal(0, 0.6, n) * np.exp(-km[:, where] / facts.UNIVERSITY_KM) + 1e-12
    cumulative = np.cumsum(pull / pull.sum(1, keepdims=True), axis=1)
    activity[students] = ids[_choose(cumulative, area[students], rng)]


def _choose(cumulative: np.ndarray, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column of each row, from rows of cumulative probabilities."""
    k = cumulative.shape[1]
    flat = (cumulative / cumulative[:, -1:] + np.arange(cumulative.shape[0])[:, None]).ravel()
    found = np.searchsorted(flat, rng.random(row.size) + row, side="right") - row * k
    return np.clip(found, 0, k - 1)


def _work(areas, age, area, activity, venues, km, residence_kind, residence_area, staff, rng):
    employed = (activity == -1) & (rng.random(age.size) < facts.steps_of(facts.EMPLOYED, age))
    workers = np.flatnonzero(employed & (rng.random(age.size) < facts.FIXED_WORKPLACE))
    n_areas = len(areas.names)
    pull = areas.jobs * np.exp(-km / facts.COMMUTE_KM)
    work_area = _choose(np.cumsum(pull, axis=1), area[workers], rng)
    order = np.argsort(work_area + rng.random(workers.size))
    workers, work_area = workers[order], work_area[order]
    at = np.searchsorted(work_area, np.arange(n_areas + 1))
    free, end = at[:-1].copy(), at[1:]

    def hire(venue: int, where: int, n: int) -> None:
        n = min(n, int(end[where] - free[where]))
        activity[workers[free[where] : free[where] + n]] = venue
        free[where] += n

    homes = np.flatnonzero(residence_kind == RESIDENCES.index("care home"))
    for venue, home in zip(venues.found("care home", homes.size, homes), homes, strict=True):
        hire(int(venue), int(residence_area[home]), round(facts.CARE_HOME_SIZE / facts.CARE_RESIDENTS_PER_WORKER))
    for venue, where, teachers in staff:
        hire(venue, where, teachers)

    # Large companies settle first; the rest of each area fills up with small ones.
    share = np.array([c[2] for c in facts.COMPANIES])
    share = share / share.sum()
    means = np.array([(b - a) / np.log(b / a) for a, b, _ in facts.COMPANIES])
    left = end - free
    n_companies = int(left.sum() / (share @ means))
    large = []
    for (low, high, _), p in zip(facts.COMPANIES[3:], share[3:], strict=True):
        # Stratified, so that chance does not give a small town a handful of giants.
        n = int(np.floor(n_companies * p + rng.uniform()))
        u = (np.arange(n) + rng.uniform(size=n)) / max(n, 1)
        large.append((low * (high / low) ** u).astype(int))
    most = 0.6 * left.sum()
    for size in np.sort(np.concatenate(large))[::-1]:
        left = end - free
        if size > most:
            continue
        most -= size
        centre = rng.choice(n_areas, p=left / left.sum())
        venue, missing = int(venues.found("company", 1)[0]), int(size)
        for where in np.argsort(km[centre], kind="stable"):  # where one area has too few, the next ones send workers
            hired = min(missing, int(end[where] - free[where]))
            hire(venue, int(where), hired)
            missing -= hired
            if not missing:
                break
    small = share[:3] / share[:3].sum()
    low = np.array([c[0] for c in facts.COMPANIES[:3]], float)
    high = np.array([c[1] for c in facts.COMPANIES[:3]], float) + 1
    for where in range(n_areas):
        n = int(end[where] - free[where])
        if not n:
            continue
        kind = rng.choice(3, max(n, 1), p=small)
        sizes = np.floor(np.exp(rng.uniform(np.log(low[kind]), np.log(high[kind])))).astype(np.int64)
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
        ids = venues.found("company", sizes.size)
        activity[workers[free[where] : end[where]]] = np.repeat(ids, sizes)[:n]
