"""SIR in areas, with a transmission rate for every area and week: a model of as many parameters as one likes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from calibrant._model import AbstractModel, Params, parameter
from calibrant.models._epidemic import first_cases, force_of_infection, probability_within
from calibrant.models.sir import SIRState
from calibrant.networks import Incidence, random_groups


class RegionalSIRParams(Params):
    log_factor: Float[Array, "areas periods"] = parameter(
        [[0.0]], description="log of the transmission rate over `beta`, by area and period"
    )
    beta: Float[Array, ""] = parameter(0.5, units="1/day", description="transmission rate where log_factor is 0")
    gamma: Float[Array, ""] = parameter(0.2, units="1/day", description="recovery rate")
    initial: Float[Array, ""] = parameter(20.0, units="agents", description="infectious at the start")


class RegionalSIR(AbstractModel):
    """Susceptible, infected, recovered; agents live in areas, in households there, and meet in groups across areas.

    A susceptible agent of area `a` is infected at the rate `beta exp(log_factor[a, period]) * (infected fraction of the
    others, half of it at home, half in the group)`.

    **Arguments:** `n_agents`; `areas` of equal size (to one); `steps`, and `days` of a period, 7 by default; sizes of
    `household` and `group`; `seed`, of who meets whom.

    `log_factor` may have one row for all areas, or one column for all periods. It has no prior; `smooth` makes
    one. The other parameters are fixed unless they are given one.
    Outputs: `infected` (prevalence) and `recovered`, shape (steps, areas).
    """

    layers: tuple[Incidence, ...]
    areas: Incidence
    shares: Float[Array, " layers"]
    period_of: Int[Array, " steps"]
    _periods: int = eqx.field(static=True)

    Params = RegionalSIRParams

    def __init__(
        self,
        n_agents: int = 1000,
        areas: int = 4,
        steps: int = 56,
        days: int = 7,
        household: int = 4,
        group: int = 20,
        seed: int = 0,
    ):
        if not 1 <= areas <= n_agents:
            raise ValueError(f"RegionalSIR needs from 1 to {n_agents} areas, one agent each at least, got {areas}.")
        if steps < 1 or days < 1:
            raise ValueError(f"RegionalSIR needs at least one step and one day a period, got {steps} and {days}.")
        self.layers = (random_groups(n_agents, household, contiguous=True), random_groups(n_agents, group, seed=seed))
        self.areas = Incidence(np.arange(n_agents) * areas // n_agents)
        self.shares = jnp.full(2, 0.5)
        self.period_of = jnp.arange(steps, dtype=jnp.int32) // days
        self._periods = -(-steps // days)

    def smooth(self, scale: float = 0.2) -> dist.Distribution:
        """A prior for `log_factor`: in every area a Gaussian random walk from 0 with steps of `scale`."""
        walk = dist.GaussianRandomWalk(scale, num_steps=self._periods)
        return walk.expand((self.areas.n_venues,))

    def _factors(self, params) -> Float[Array, "areas periods"]:
        wanted = (self.areas.n_venues, self._periods)
        try:
            return jnp.broadcast_to(params.log_factor, wanted)
        except ValueError:
            raise ValueError(
                f"`log_factor` of this RegionalSIR has shape {wanted}, areas and periods, or 1 for either; got "
                f"{jnp.shape(params.log_factor)}."
            ) from None

    def init(self, params, rng):
        infected = first_cases(params.initial, self.areas.n_agents, rng)
        return SIRState(1 - infected, infected)

    def step(self, params, state, inputs_t, rng):
        rate = params.beta * jnp.exp(jnp.take(self._factors(params), inputs_t, axis=1))
        hazard = self.areas.spread(rate) * force_of_infection(self.layers, self.shares, state.infected)
        caught = rng.bernoulli(probability_within(hazard, 1.0), site="infection", where=state.susceptible)
        recovers = rng.bernoulli(probability_within(params.gamma, 1.0), site="recovery", where=state.infected)
        return SIRState(state.susceptible - caught, state.infected + caught - recovers)

    def observe(self, params, state, inputs_t, rng):
        infected, susceptible = self.areas.sum(state.infected), self.areas.sum(state.susceptible)
        people = jnp.asarray(self.areas.sizes, infected.dtype)
        return {"infected": infected, "recovered": people - infected - susceptible}

    @property
    def n_agents(self):
        return self.areas.n_agents

    @property
    def default_params(self):
        return RegionalSIRParams(log_factor=jnp.zeros((self.areas.n_venues, self._periods)))

    @property
    def default_inputs(self):
        return self.period_of
