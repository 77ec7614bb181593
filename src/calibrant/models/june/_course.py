"""The course of the disease in one person: when, and how far it goes.

Everything is drawn once a simulation for everybody, as what would happen *if* infected, in days since infection; it is
independent of who is infected when.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from calibrant._randomness import Randomness
from calibrant.models.june import _tables as tables


class Course(eqx.Module):
    """Of each person, in days since infection where it is a time.

    `infectious`: when infectiousness starts; `log_scale`, `shape`, `rate`: its gamma profile from then on; `onset`: of
    symptoms (for the never-symptomatic, the time they would have had); `end`: recovery or death; `symptomatic`,
    `severe`, `dies`: 0 or 1; `admission`, `death`: times, whole days.
    """

    infectious: Float[Array, " people"]
    log_scale: Float[Array, " people"]
    shape: Float[Array, " people"]
    rate: Float[Array, " people"]
    onset: Float[Array, " people"]
    end: Float[Array, " people"]
    symptomatic: Float[Array, " people"]
    severe: Float[Array, " people"]
    dies: Float[Array, " people"]
    admission: Float[Array, " people"]
    death: Float[Array, " people"]


def shift_odds(p: Array, log_odds: Array) -> Array:
    """Probabilities with their log-odds shifted; 0 and 1 stay."""
    odds = jnp.exp(log_odds)
    return p * odds / (1 - p + p * odds)


def stage_probabilities(params) -> tuple[Array, Array, Array, Array]:
    """P(symptomatic | infected), P(severe | symptomatic), P(critical | severe), P(dead | critical), by age band.

    The tables are per infection, so each conditional probability is a column over the one before.
    """
    dtype = jnp.result_type(params.severity)
    s, v, c, d = (jnp.asarray(x, dtype) for x in (tables.SYMPTOMATIC, tables.SEVERE, tables.CRITICAL, tables.DEATH))
    return (
        s,
        shift_odds(v / s, params.severity),
        shift_odds(c / v, params.criticality),
        shift_odds(d / c, params.fatality),
    )


def draw_course(
    params,
    band: Int[Array, " people"],
    rng: Randomness,
    *,
    index: UInt32[Array, " people"] | None = None,
    exists: Float[Array, " people"] | None = None,
) -> Course:
    """Draw everybody's course; `band` is the age band of each person, `index` what their draws go by."""
    shape = band.shape
    dtype = jnp.result_type(params.severity)

    def normal(site, moments):
        return moments[0] + moments[1] * rng.normal(f"course: {site}", shape, agents=index, dtype=dtype)

    def days(site, moments, shift=0.0):
        return jnp.exp(shift + normal(site, moments))

    def event(site, p, where=None):
        return rng.bernoulli(p[band], site=f"course: {site}", where=where, agents=index)

    exposed = days("exposed", tables.EXPOSED, params.incubation)
    onset = exposed + days("presymptomatic", tables.PRESYMPTOMATIC)
    of_symptoms, of_severe, of_critical, of_death = stage_probabilities(params)
    symptomatic = event("symptomatic", of_symptoms, exists)
    severe = event("severe", of_severe, symptomatic)
    critical = event("critical", of_critical, severe)
    dies = event("dies", of_death, critical)
    admission = onset + days("to admission", tables.TO_ADMISSION, params.admission_delay)
    intensive = admission + days("to critical", tables.TO_CRITICAL)
    death = intensive + days("to death", tables.TO_DEATH, params.death_delay)
    recovery = rng.normal(
        "course: recovery", shape, agents=index, dtype=dtype
    )  # one recovers once, so one number is enough

    def recovers(moments):
        return jnp.exp(moments[0] + moments[1] * recovery)

    mild, hospital = recovers(tables.MILD_RECOVERY), recovers(tables.HOSPITAL_RECOVERY)
    end = exposed + mild
    for reached, time in (
        (symptomatic, onset + mild),
        (severe, admission + hospital),
        (critical, intensive + hospital),
    ):
        end = jnp.where(reached > 0, time, end)
    end = jnp.where(dies > 0, death, end)

    a, b = normal("shape", tables.SHAPE), normal("rate", tables.RATE)
    log_max = normal("maximum", tables.MAX_INFECTIOUSNESS)
    return Course(
        infectious=onset + normal("shift", tables.SHIFT),
        log_scale=log_max + a * jnp.log(b) - jax.lax.lgamma(a),
        shape=a,
        rate=b,
        onset=onset,
        end=end,
        symptomatic=symptomatic,
        severe=severe,
        dies=dies,
        admission=jnp.floor(admission),
        death=jnp.floor(death),
    )


def infectiousness(course: Course, days: Float[Array, " people"]) -> tuple[Array, Bool[Array, " people"]]:
    """Infectiousness `days` after infection, and who has any: a shifted gamma density, until recovery or death.

    `max rate^shape / Gamma(shape) u^(shape - 1) exp(-rate u)` with `u` the days since it started (JUNE, section 2.4).
    """
    u = days - course.infectious
    active = (u > 0) & (days < course.end)
    u = jnp.where(active, u, 1)
    density = jnp.exp(course.log_scale + (course.shape - 1) * jnp.log(u) - course.rate * u)
    return jnp.where(active, density, 0), active
