"""Influenza in an English boarding school, January and February 1978.

Data: Anonymous (1978), "Influenza in a boarding school", British Medical Journal 1: 587. 763 boys aged 10 to 18, all
but 30 of them full boarders; 512 fell ill and spent on average some days in bed. The daily numbers are the published
ones, as digitised in the R package `outbreaks`.

Contacts. Boys of a boarding school meet the whole school every day, in one dining hall, the chapel, classes and games,
and spend the rest of the day and the night in their house. So there are two layers of contact: the school, and houses
of about sixty. How contact divides between them is not known; the curve, one smooth wave and not a series of waves
in house after house, says that most of it is school-wide, and a quarter is given to the house. The posterior hardly
depends on it (see the docs).
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params, parameter
from calibrant.models._epidemic import daily, first_cases, force_of_infection, probability_within
from calibrant.networks import Incidence, random_groups


@dataclasses.dataclass(frozen=True)
class SchoolOutbreak:
    """The published observations: boys on each of 14 days, and how many were ever ill."""

    pupils: int = 763
    ever_ill: int = 512
    first_day: str = "1978-01-22"
    in_bed: tuple[int, ...] = (3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4)
    convalescent: tuple[int, ...] = (0, 0, 0, 0, 9, 17, 105, 162, 176, 166, 150, 85, 47, 20)


OUTBREAK_1978 = SchoolOutbreak()


class _Contacts(eqx.Module):
    layers: tuple[Incidence, ...]
    shares: Float[Array, " layers"]

    def __init__(self, pupils: int, house_size: int, house_share: float):
        if not 0 <= house_share <= 1:
            raise ValueError(f"`house_share` is a fraction of contact, from 0 to 1, got {house_share}.")
        school = Incidence(np.zeros(pupils, dtype=np.int32))
        houses = random_groups(pupils, house_size, contiguous=True)
        self.layers = (school, houses)
        self.shares = jnp.asarray([1 - house_share, house_share], dtype=float)

    def force(self, infectious):
        return force_of_infection(self.layers, self.shares, infectious)


def _steps_per_day(steps_per_day: int) -> int:
    if not (isinstance(steps_per_day, int) and steps_per_day >= 1):
        raise ValueError(f"`steps_per_day` is a whole number >= 1, got {steps_per_day!r}.")
    return steps_per_day


class SchoolSIRParams(Params):
    r0: Float[Array, ""] = parameter(
        3.7, prior=dist.LogNormal(np.log(3.0), 0.5), description="basic reproduction number"
    )
    infectious_days: Float[Array, ""] = parameter(
        2.2, prior=dist.LogNormal(np.log(2.5), 0.5), units="days", description="mean infectious period, spent in bed"
    )
    initial: Float[Array, ""] = parameter(
        1.5, prior=dist.LogNormal(np.log(1.5), 0.5), units="boys", description="infectious on the eve of the first day"
    )


class SchoolSIRState(eqx.Module):
    susceptible: Float[Array, " boys"]
    infected: Float[Array, " boys"]


class BoardingSchoolSIR(AbstractModel):
    """Susceptible, infected, recovered: the boys in bed are the infectious ones, as most published analyses have it.

    **Arguments:** `pupils`; `house_size`; `house_share`, the fraction of contact within the house; `steps_per_day`
    (4, that is 6 hours a step).

    Outputs: `{"in_bed": (days,)}` at the end of each day.
    """

    contacts: _Contacts
    pupils: int = eqx.field(static=True)
    steps_per_day: int = eqx.field(static=True)

    Params = SchoolSIRParams

    def __init__(self, pupils: int = 763, house_size: int = 60, house_share: float = 0.25, steps_per_day: int = 4):
        self.contacts = _Contacts(pupils, house_size, house_share)
        self.pupils = pupils
        self.steps_per_day = _steps_per_day(steps_per_day)

    def init(self, params, rng):
        infected = first_cases(params.initial, self.pupils, rng)
        return SchoolSIRState(1 - infected, infected)

    def step(self, params, state, inputs_t, rng):
        dt = 1 / self.steps_per_day
        gamma = 1 / params.infectious_days
        hazard = params.r0 * gamma * self.contacts.force(state.infected)
        caught = rng.bernoulli(probability_within(hazard, dt), site="infection", where=state.susceptible)
        recovers = rng.bernoulli(probability_within(gamma, dt), site="recovery", where=state.infected)
        return SchoolSIRState(state.susceptible - caught, state.infected + caught - recovers)

    def observe(self, params, state, inputs_t, rng):
        return {"in_bed": jnp.sum(state.infected)}

    def summarise(self, params, outputs):
        return daily(outputs, self.steps_per_day)

    @property
    def n_agents(self):
        return self.pupils

    @property
    def default_steps(self):
        return 14 * self.steps_per_day


class SchoolSIBRParams(Params):
    r0: Float[Array, ""] = parameter(
        3.0, prior=dist.LogNormal(np.log(3.0), 0.5), description="basic reproduction number if nobody were immune"
    )
    infectious_days: Float[Array, ""] = parameter(
        1.0, prior=dist.LogNormal(np.log(1.5), 0.5), units="days", description="mean time infectious before bed"
    )
    bed_days: Float[Array, ""] = parameter(
        3.0, prior=dist.LogNormal(np.log(3.0), 0.5), units="days", description="mean time in bed"
    )
    convalescent_days: Float[Array, ""] = parameter(
        2.0, prior=dist.LogNormal(np.log(2.0), 0.5), units="days", description="mean time convalescent"
    )
    susceptible: Float[Array, ""] = parameter(
        0.75, prior=dist.Uniform(0.5, 1.0), description="fraction of boys who are not immune"
    )
    initial: Float[Array, ""] = parameter(
        3.0, prior=dist.LogNormal(np.log(3.0), 0.5), units="boys", description="infectious on the eve of the first day"
    )


class SchoolSIBRState(eqx.Module):
    susceptible: Float[Array, " boys"]
    infectious: Float[Array, " boys"]
    in_bed: Float[Array, " boys"]
    convalescent: Float[Array, " boys"]
    falls_ill: Float[Array, " boys"]


class BoardingSchoolSIBR(AbstractModel):
    """Susceptible, infectious, in bed, recovered: boys infect others before they are put to bed, and not from there.

    It also accounts for the convalescent, and for the third of the school who never fell ill, through boys who are
    immune from the start. Arguments as of `BoardingSchoolSIR`.

    Outputs: `{"in_bed": (days,), "convalescent": (days,), "ever_ill": ()}`.
    """

    contacts: _Contacts
    pupils: int = eqx.field(static=True)
    steps_per_day: int = eqx.field(static=True)

    Params = SchoolSIBRParams

    def __init__(self, pupils: int = 763, house_size: int = 60, house_share: float = 0.25, steps_per_day: int = 4):
        self.contacts = _Contacts(pupils, house_size, house_share)
        self.pupils = pupils
        self.steps_per_day = _steps_per_day(steps_per_day)

    def init(self, params, rng):
        infectious = first_cases(params.initial, self.pupils, rng)
        susceptible = rng.bernoulli(params.susceptible, site="not immune", where=1 - infectious)
        none = jnp.zeros_like(infectious)
        return SchoolSIBRState(susceptible, infectious, none, none, none)

    def step(self, params, state, inputs_t, rng):
        dt = 1 / self.steps_per_day
        rate = params.r0 / params.infectious_days
        hazard = rate * self.contacts.force(state.infectious)
        caught = rng.bernoulli(probability_within(hazard, dt), site="infection", where=state.susceptible)
        to_bed = rng.bernoulli(probability_within(1 / params.infectious_days, dt), site="bed", where=state.infectious)
        up = rng.bernoulli(probability_within(1 / params.bed_days, dt), site="up", where=state.in_bed)
        well = rng.bernoulli(
            probability_within(1 / params.convalescent_days, dt), site="well", where=state.convalescent
        )
        return SchoolSIBRState(
            state.susceptible - caught,
            state.infectious + caught - to_bed,
            state.in_bed + to_bed - up,
            state.convalescent + up - well,
            to_bed,
        )

    def observe(self, params, state, inputs_t, rng):
        return {
            "in_bed": jnp.sum(state.in_bed),
            "convalescent": jnp.sum(state.convalescent),
            "falls_ill": jnp.sum(state.falls_ill),
        }

    def summarise(self, params, outputs):
        # What accumulates is added up here, after the scan, where no horizon cuts it.
        by_day = {name: daily(outputs[name], self.steps_per_day) for name in ("in_bed", "convalescent")}
        return {**by_day, "ever_ill": jnp.sum(outputs["falls_ill"])}

    @property
    def n_agents(self):
        return self.pupils

    @property
    def default_steps(self):
        return 14 * self.steps_per_day
