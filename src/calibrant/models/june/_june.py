"""JUNE: an epidemic in a city, agent by agent (Aylett-Bullock et al. 2021), laid out for speed and for gradients.

Force of infection on a person, a day:

    sum over venues v of  10^log_beta(type of v) factor(type, date) contact(v) (sum of infectiousness of others in v)

times susceptibility, with `contact = clip(1 / (members - 1), 0, 1)`; in leisure, attendance by age, sex and kind of day
multiplies infectiousness and susceptibility. Infection in a step of one day has probability `1 - exp(-force)`.

Layout. People are sorted by area and household, so household sums run over contiguous people. Everybody has at most one
main activity, so companies, schools, universities and care home staff share one set of venues and one sum. Leisure is
summed once by (area, age, sex) and combined over activities and neighbouring areas in a table that small.
"""

import datetime
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, UInt32

from calibrant._devices import divided_array
from calibrant._model import AbstractModel, Params, parameter
from calibrant.models.june import _tables as tables
from calibrant.models.june._calendar import Calendar, DayInputs
from calibrant.models.june._course import Course, draw_course, infectiousness, stage_probabilities
from calibrant.models.june._expected import delay_distribution, delayed
from calibrant.networks import Incidence, Venues, exact_sum_rows
from calibrant.worlds import ACTIVITIES, Population, World


def _log_beta(default: float, venue: str, *, free: bool = True) -> Any:
    prior = dist.Normal(default, 0.4) if free else None
    return parameter(default, prior=prior, units="log10(1/day)", description=f"intensity of contact, {venue}")


class JuneParams(Params):
    log_seed: Float[Array, ""] = parameter(
        -3.5, prior=dist.Normal(-3.5, 0.4), units="log10", description="imported infections a resident"
    )
    log_beta_household: Float[Array, ""] = _log_beta(0.6, "household")
    log_beta_company: Float[Array, ""] = _log_beta(0.4, "company")
    log_beta_school: Float[Array, ""] = _log_beta(0.4, "school")
    log_beta_university: Float[Array, ""] = _log_beta(0.4, "university")
    log_beta_care_home: Float[Array, ""] = _log_beta(0.6, "care home")
    log_beta_pub: Float[Array, ""] = _log_beta(0.1, "pub")
    log_beta_cinema: Float[Array, ""] = _log_beta(0.1, "cinema")
    log_beta_gym: Float[Array, ""] = _log_beta(0.1, "gym")
    log_beta_visit: Float[Array, ""] = _log_beta(0.1, "visit")
    log_beta_grocery: Float[Array, ""] = _log_beta(0.1, "grocery")
    log_beta_care_visit: Float[Array, ""] = _log_beta(0.1, "care visit", free=False)
    susceptibility: Float[Array, " bands"] = parameter(
        np.ones(len(tables.AGE_BANDS)), description="relative susceptibility, by ten years of age"
    )
    log_contact: Float[Array, " factors"] = parameter(
        np.zeros(0), units="log", description="free contact factors of the calendar"
    )
    compliance: Float[Array, ""] = parameter(0.7, description="share of contacts outside home given up in isolation")
    severity: Float[Array, ""] = parameter(0.0, units="log odds", description="shift of P(severe | symptomatic)")
    criticality: Float[Array, ""] = parameter(0.0, units="log odds", description="shift of P(critical | severe)")
    fatality: Float[Array, ""] = parameter(0.0, units="log odds", description="shift of P(dead | critical)")
    incubation: Float[Array, ""] = parameter(0.0, units="log", description="shift of the log latent period")
    admission_delay: Float[Array, ""] = parameter(0.0, units="log", description="shift of log days onset to admission")
    death_delay: Float[Array, ""] = parameter(0.0, units="log", description="shift of log days intensive care to death")


class JuneState(eqx.Module):
    infected: Float[Array, " people"]
    infected_on: Float[Array, " people"]
    #: What an infection that did not happen would have brought: zero, with a derivative. See `June.step`.
    latent: Float[Array, " people"]
    active: Float[Array, " people"]
    course: Course
    counts: dict[str, Float[Array, "regions bands"]]


# Expected infectiousness after an infection, for its derivative: two stages with the total of the profile above and its
# mean time, 6.2 days (of 100,000 drawn courses).
_LATENT_DAYS, _ACTIVE_DAYS, _TOTAL = 3.3, 2.9, 1.10


#: Members of a workplace or school up to which echoes are bounded; larger ones are not soon exhausted.
_SMALL = 20


def _share_of_echo(intensity: Float[Array, " people"], contact: Float[Array, " people"]) -> Float[Array, " people"]:
    """Share `s` of an echo that is heard in a group of n, where `contact` is 1 / (n - 1).

    A derivative is linear: in it nobody is ever used up, and a group of n in which each infects R others would echo an
    infection R + R^2 + ... times, where in truth at most n - 1 can follow. The share is such that

        s R + (s R)^2 + ... = A = (n - 1) a,    a = 1 - exp(-R / (n - 1) (1 + (n - 2) a)),

    A the expected number of others infected by the equation of the final size: s = A / ((1 + A) R).
    """
    r = jnp.maximum(jax.lax.stop_gradient(_TOTAL * intensity), 1e-6)
    attack = jnp.full_like(contact, 0.5)
    for _ in range(8):  # converges fast in small groups
        attack = -jnp.expm1(-r * (contact + attack * (1 - contact)))
    others = attack / jnp.maximum(contact, 1e-6)
    return others / ((1 + others) * r)


@jax.custom_jvp
def _tangent_only(x: Array) -> Array:
    """Zero, with the tangent of `x`: what only derivatives need costs nothing where there are none.

    To `vmap`, value and tangent must be alike in what they depend on; the compiler sees that this is constant.
    """
    return jnp.where(False, x, jnp.zeros_like(x))


@_tangent_only.defjvp
def _(primals, tangents):
    return _tangent_only(primals[0]), tangents[0]


class June(AbstractModel):
    """An epidemic in a `World`, through a `Calendar`.

    **Arguments:**

    - `world`, or one laid out, a `Population`, of which every process reads its own part; `calendar`.
    - `leisure_areas`: leisure happens in one venue an area, shared by the residents of so many nearest areas.
    - `regions`: `"all"`, `"borough"` or `"area"`, by which outputs are counted.
    - `seeding`: relative import rate of each area, ones by default.
    - `sampled`: also count admissions and deaths of the agents themselves, and prevalence.
    - `detail`: also give every output by age and by region.
    - `people_per_agent`: what an agent stands for; outputs are counts of people.
    - `blocks`: into which the world is divided, as many as devices along `agents` or a multiple of it. It changes
      nothing else: everybody draws the same numbers in any layout.

    Outputs by day, shape (days,): `infections`, `cumulative_infections`, `expected_admissions`, `expected_deaths`;
    `seroprevalence`, the share with antibodies of those from 20 to 69; with `sampled` also `prevalence`, `admissions`,
    `deaths`. With `detail`, counts also as `..._by_age` (days, 10) and `..._by_region` (days, regions).
    """

    residences: Incidence
    activities: Incidence
    cells: Incidence
    index: UInt32[Array, " people"] | None
    exists: Float[Array, " people"] | None
    residence_contact: Float[Array, " people"]
    in_care_home: Bool[Array, " people"]
    lives_at_activity: Bool[Array, " people"]
    activity_contact: Float[Array, " people"]
    activity_kind: Int[Array, " people"]
    near: Int[Array, "areas near"]
    visited: Venues = eqx.field(static=True)
    leisure_contact: Float[Array, " areas"]
    attendance: Float[Array, "2 groups leisure"]
    seeding: Float[Array, " areas"]
    band: Int[Array, " people"]
    region: Int[Array, " areas"]
    inputs: DayInputs
    people_per_agent: Float[Array, ""]
    n_regions: int = eqx.field(static=True)
    sampled: bool = eqx.field(static=True)
    detail: bool = eqx.field(static=True)
    free_factors: tuple[str, ...] = eqx.field(static=True)
    start: datetime.date = eqx.field(static=True)

    Params = JuneParams

    def __init__(
        self,
        world: World | Population,
        calendar: Calendar,
        *,
        leisure_areas: int = 3,
        regions: str = "all",
        seeding: "np.ndarray | None" = None,
        sampled: bool = False,
        detail: bool = False,
        people_per_agent: float = 1.0,
        blocks: int = 1,
    ):
        if leisure_areas < 1:
            raise ValueError(f"`leisure_areas` is at least 1, got {leisure_areas}.")
        people = world if isinstance(world, Population) else Population.of(world, blocks=blocks, near=leisure_areas)
        n, areas = people.n_people, people.n_areas_of_world
        if isinstance(world, Population):
            if blocks not in (1, people.blocks):
                raise ValueError(f"The world was laid out in {people.blocks} blocks; leave `blocks` out, got {blocks}.")
            if people.near.shape[1] != min(leisure_areas, areas):
                raise ValueError(
                    f"The world was laid out for `leisure_areas` = {people.near.shape[1]}, got {leisure_areas}; divide "
                    "it again."
                )
        region = {
            "all": np.zeros(people.n_areas, np.int32),
            "borough": people.borough,
            "area": np.maximum(people.area_of, 0).astype(np.int32),
        }.get(regions)
        if region is None:
            raise ValueError(f"`regions` is 'all', 'borough' or 'area', got '{regions}'.")
        seeding = np.ones(areas) if seeding is None else np.asarray(seeding, dtype=float)
        if seeding.shape != (areas,) or not np.all(seeding >= 0):
            raise ValueError(f"`seeding` has one number >= 0 for each of {areas} areas.")
        real = np.dtype(jnp.result_type(float))

        def contact(members):
            return np.clip(1 / np.maximum(members - 1, 1), 0, 1).astype(real)

        def groups(rows):
            return tables.group_of(people.age[rows], people.sex[rows])

        def venues(row, total, largest, *, cut=0, is_sorted=False):
            of_people = divided_array(n, lambda rows: np.where(row(rows) < 0, total, row(rows)).astype(np.int32))
            return Incidence.laid_out(of_people, Venues(total, is_sorted, max(largest, 1), None, people.blocks, cut))

        def cell(rows):
            area = people.area[rows]
            return np.where(area < 0, -1, area * tables.N_GROUPS + groups(rows))

        self.residences = venues(
            lambda rows: people.residence[rows], people.n_residences, people.largest_residence, is_sorted=True
        )
        self.activities = venues(
            lambda rows: people.activity[rows], people.n_activities, people.largest_activity, cut=people.cut
        )
        self.cells = venues(cell, people.n_areas * tables.N_GROUPS, people.largest_cell)
        one = people.blocks == 1
        self.index = None if one else divided_array(n, lambda rows: people.index[rows])
        self.exists = None if one else divided_array(n, lambda rows: people.exists[rows].astype(real))
        self.residence_contact = divided_array(n, lambda rows: contact(people.residence_members[rows]))
        self.in_care_home = divided_array(n, lambda rows: people.in_care_home[rows])
        self.lives_at_activity = divided_array(n, lambda rows: people.lives_at_activity[rows])
        self.activity_contact = divided_array(
            n, lambda rows: np.where(people.activity[rows] < 0, 0, contact(people.activity_members[rows])).astype(real)
        )
        self.activity_kind = divided_array(n, lambda rows: people.activity_kind[rows])
        self.band = divided_array(n, lambda rows: tables.BAND_OF_GROUP[groups(rows)].astype(np.uint8))
        self.near = jnp.asarray(people.near)
        self.visited = Venues(people.n_areas, largest=int(np.bincount(people.near.ravel()).max()))
        self.leisure_contact = jnp.asarray(contact(people.around))
        self.attendance = jnp.asarray(tables.attendance(), dtype=float)
        self.seeding = jnp.asarray(people.of_areas(seeding), dtype=float)
        self.region = jnp.asarray(region)
        self.inputs = calendar.inputs()
        self.people_per_agent = jnp.asarray(people_per_agent, dtype=float)
        self.n_regions = int(region.max()) + 1
        self.sampled = sampled
        self.detail = detail
        self.free_factors = calendar.free_factors
        self.start = calendar.start

    @property
    def n_agents(self) -> int:
        return self.band.shape[0]

    @property
    def n_areas(self) -> int:
        return self.near.shape[0]

    @property
    def default_inputs(self):
        return self.inputs

    @property
    def dates(self):
        return [self.start + datetime.timedelta(days=i) for i in range(self.inputs.day.shape[0])]

    @property
    def default_params(self):
        return self.Params().replace({"log_contact": jnp.zeros(len(self.free_factors))})

    @property
    def _streams(self) -> tuple[str, ...]:
        return ("infections", "prevalence", "admissions", "deaths") if self.sampled else ("infections",)

    def init(self, params, rng):
        course = draw_course(params, self.band.astype(jnp.int32), rng, index=self.index, exists=self.exists)
        dtype = course.onset.dtype
        zeros = jnp.zeros((self.n_agents,), dtype)
        empty = jnp.zeros((self.n_regions, len(tables.AGE_BANDS)), dtype)
        return JuneState(
            # Nobody, who fills up a block, cannot be infected.
            infected=zeros if self.exists is None else 1 - self.exists.astype(dtype),
            infected_on=jnp.full((self.n_agents,), jnp.inf, dtype),
            latent=zeros,
            active=zeros,
            course=course,
            counts=dict.fromkeys(self._streams, empty),
        )

    def step(self, params, state, inputs_t, rng):
        beta = self._intensities(params, inputs_t)
        course = state.course
        days = inputs_t.day - state.infected_on
        x, _ = infectiousness(course, days)
        # In isolation one gives up contacts outside the household. In a force of infection, a sum over many, the share
        # given up does what the share of those who isolate does, without a draw and with an exact derivative.
        given_up = inputs_t.isolation * params.compliance
        isolated = (days >= course.onset) & (days < course.end) & (course.symptomatic > 0)
        kept = 1 - jnp.where(isolated, given_up, 0)
        echo = (_TOTAL / _ACTIVE_DAYS) * state.active
        at_home, at_work = self._saturation(beta)
        home = x + _tangent_only(at_home * echo)
        work = x * kept + _tangent_only(at_work * echo)
        outside = x * kept + _tangent_only(echo)

        # Whatever is common to an area, age and sex is put together in that small table, and handed out once.
        susceptibility = params.susceptibility[tables.BAND_OF_GROUP]
        per_cell = jnp.broadcast_to(susceptibility, (self.n_areas, tables.N_GROUPS)).reshape(-1)
        leisure = self._leisure(beta, self.cells.sum(outside, wide=False), inputs_t.weekend)
        common = per_cell * leisure + self._imports(params, inputs_t)
        force = self._at_home_and_work(beta, home, work)
        hazard = force * self.cells.spread(per_cell) + self.cells.spread(common)
        caught = rng.bernoulli(-jnp.expm1(-hazard), site="infection", where=1 - state.infected, agents=self.index)

        # An infection that a parameter makes a little more likely makes its person a little infectious later, realised
        # or not. The realised course says when for those infected; for the rest the derivative follows the mean course.
        stay_latent, stay_active = np.exp(-1 / _LATENT_DAYS), np.exp(-1 / _ACTIVE_DAYS)
        latent = _tangent_only(state.latent * stay_latent + caught)
        active = _tangent_only(state.active * stay_active + state.latent * (1 - stay_latent))
        infected_on = jnp.where(caught > 0, inputs_t.day, state.infected_on)
        return JuneState(
            infected=state.infected + caught,
            infected_on=infected_on,
            latent=latent,
            active=active,
            course=course,
            counts=self._counts(caught, state, inputs_t.day - infected_on),
        )

    def _intensities(self, params, inputs_t: DayInputs) -> dict[str, Array]:
        """10^log_beta times the contact factors of the day, by venue type."""
        factor = inputs_t.factor * jnp.exp(inputs_t.free @ params.log_contact)
        return {name: 10 ** getattr(params, f"log_beta_{name}") * factor[i] for i, name in enumerate(tables.VENUES)}

    def _saturation(self, beta) -> tuple[Float[Array, " people"], Float[Array, " people"]]:
        """Share of an echo that is heard at home and at work: what makes its repetitions add up to an outbreak."""
        at_home = jnp.where(self.in_care_home, beta["care_home"], beta["household"])
        of_homes = _share_of_echo(at_home, self.residence_contact)
        of_work = _share_of_echo(5 / 7 * self._at_work(beta), self.activity_contact)
        large = (self.activity_contact < 1 / (_SMALL - 1)) & (self.activity_kind != ACTIVITIES.index("care home"))
        return of_homes, jnp.where(large, 1, of_work)

    def _at_home_and_work(self, beta, x, outside):
        """Force of infection from residence and main activity on each person, a day, at susceptibility 1."""
        # In a care home with staff, residents and staff are members of one venue, the activity.
        there = jnp.where(self.lives_at_activity, x, outside)
        contact = jnp.where(self.lives_at_activity, 0, self.residence_contact)
        at_home = jnp.where(self.in_care_home, beta["care_home"], beta["household"]) * contact
        force = at_home * self.residences.sum_of_others(x, wide=False)
        return force + self._at_work(beta) * self.activity_contact * self.activities.sum_of_others(there, wide=False)

    def _at_work(self, beta) -> Float[Array, " people"]:
        """Intensity of contact in the main activity of each person."""
        kind = self.activity_kind
        by_kind = [beta[name.replace(" ", "_")] for name in ACTIVITIES]
        return jnp.where(
            kind < 2,
            jnp.where(kind == 0, by_kind[0], by_kind[1]),
            jnp.where(kind == 2, by_kind[2], by_kind[3]),
        )

    def _leisure(self, beta, infectious: Float[Array, " cells"], weekend) -> Float[Array, " cells"]:
        """Force from leisure by (area, group). Oneself is not left out: one in the thousands who share a venue."""
        attendance = self.attendance[0] + weekend * (self.attendance[1] - self.attendance[0])
        by_group = infectious.reshape(self.n_areas, tables.N_GROUPS)
        by_activity = jnp.matmul(by_group, attendance, precision="highest")
        venue = jnp.sum(by_activity[self.near], axis=1) * self.leisure_contact[:, None]
        visits = jnp.repeat(venue, self.near.shape[1], axis=0)
        around = exact_sum_rows(visits, self.near.reshape(-1), self.visited)
        intensity = jnp.stack([beta[name] for name in tables.LEISURE])
        return jnp.matmul(around * intensity, attendance.T, precision="highest").reshape(-1)

    def _imports(self, params, inputs_t: DayInputs) -> Float[Array, " cells"]:
        """Hazard of infection from outside, by (area, group)."""
        share = 10**params.log_seed * inputs_t.imports * self.seeding
        hazard = -jnp.log1p(-jnp.minimum(share, 0.999))
        return jnp.repeat(hazard, tables.N_GROUPS)

    def _counts(self, caught, state: JuneState, days) -> dict[str, Array]:
        """People by (region, age band): the newly infected, and, if sampled, where everybody is in their course."""
        course = state.course
        streams = {"infections": caught}
        if self.sampled:
            ongoing = (days >= 0) & (days < course.end)
            streams["prevalence"] = jnp.where(ongoing, state.infected + caught, 0)
            streams["admissions"] = jnp.where(days == course.admission, course.severe, 0)
            streams["deaths"] = jnp.where(days == course.death, course.dies, 0)
        return {name: self._tabulate(self.cells.sum(x)) for name, x in streams.items()}

    def _tabulate(self, cells: Float[Array, " cells"]) -> Float[Array, "regions bands"]:
        to_band = jax.nn.one_hot(tables.BAND_OF_GROUP, len(tables.AGE_BANDS), dtype=cells.dtype)
        by_area = jnp.matmul(cells.reshape(self.n_areas, tables.N_GROUPS), to_band, precision="highest")
        return jax.ops.segment_sum(by_area, self.region, self.n_regions)

    def _seroprevalence(self, params, infections: Float[Array, "days regions bands"]) -> Float[Array, " days"]:
        """Share of those of the ages that are tested who have antibodies that a test can find; they do not wane."""
        days = infections.shape[0]
        adults = jnp.asarray([low in tables.SEROLOGY_BANDS for low in tables.AGE_BANDS], infections.dtype)
        to_onset = [(tables.EXPOSED[0] + params.incubation, tables.EXPOSED[1]), tables.PRESYMPTOMATIC]
        delay = delay_distribution([*to_onset, tables.TO_ANTIBODIES], days)
        converted = jnp.sum(delayed(infections, adults, delay), axis=(1, 2))
        adult = adults[self.band.astype(jnp.int32)]
        members = self.people_per_agent * jnp.sum(adult if self.exists is None else adult * self.exists)
        return jnp.cumsum(converted) / jnp.maximum(members, 1)

    def observe(self, params, state, inputs_t, rng):
        return {name: self.people_per_agent * x for name, x in state.counts.items()}

    def summarise(self, params, outputs):
        infections = outputs["infections"]
        days = infections.shape[0]
        _, severe, critical, dies = stage_probabilities(params)
        severe = jnp.asarray(tables.SYMPTOMATIC, severe.dtype) * severe
        to_onset = [(tables.EXPOSED[0] + params.incubation, tables.EXPOSED[1]), tables.PRESYMPTOMATIC]
        to_admission = [*to_onset, (tables.TO_ADMISSION[0] + params.admission_delay, tables.TO_ADMISSION[1])]
        to_death = [
            *to_admission,
            tables.TO_CRITICAL,
            (tables.TO_DEATH[0] + params.death_delay, tables.TO_DEATH[1]),
        ]
        full = {
            **outputs,
            "cumulative_infections": jnp.cumsum(infections, axis=0),
            "expected_admissions": delayed(infections, severe, delay_distribution(to_admission, days)),
            "expected_deaths": delayed(infections, severe * critical * dies, delay_distribution(to_death, days)),
        }
        out = {name: jnp.sum(x, axis=(1, 2)) for name, x in full.items()}
        out["seroprevalence"] = self._seroprevalence(params, infections)
        if self.detail:
            out |= {f"{name}_by_age": jnp.sum(x, axis=1) for name, x in full.items()}
            out |= {f"{name}_by_region": jnp.sum(x, axis=2) for name, x in full.items()}
        return out
