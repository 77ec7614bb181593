"""SIR on a contact network."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params, parameter
from calibrant.models._epidemic import first_cases, force_of_infection, probability_within
from calibrant.networks import Incidence, random_groups


class SIRParams(Params):
    beta: Float[Array, ""] = parameter(
        0.5, prior=dist.LogNormal(-0.7, 0.7), units="1/day", description="transmission rate of an infectious agent"
    )
    gamma: Float[Array, ""] = parameter(
        0.2, prior=dist.LogNormal(-1.6, 0.5), units="1/day", description="recovery rate"
    )
    initial: Float[Array, ""] = parameter(
        5.0, prior=dist.LogNormal(1.6, 0.5), units="agents", description="infectious at the start"
    )


class SIRState(eqx.Module):
    susceptible: Float[Array, " agents"]
    infected: Float[Array, " agents"]


class SIR(AbstractModel):
    """Susceptible, infected, recovered, on layers of groups.

    The hazard of a susceptible agent is `beta * sum_l share_l * (infected fraction of the others of its group in l)`,
    and of recovery `gamma`; both act over steps of `dt` days. In a fully mixed population `beta / gamma` is R0.

    **Arguments:** `layers`, the contact layers (`Incidence`, all of the same agents); `shares`, how contact is divided
    among them (default: equally); `dt`, days a step.

    Outputs, shape (steps,) each: `infected` (prevalence) and `recovered`.
    """

    layers: tuple[Incidence, ...]
    shares: Float[Array, " layers"]
    dt: float = eqx.field(static=True)

    Params = SIRParams

    def __init__(self, layers: "tuple[Incidence, ...] | Incidence", shares=None, dt: float = 1.0):
        layers = (layers,) if isinstance(layers, Incidence) else tuple(layers)
        if len({layer.n_agents for layer in layers}) != 1:
            raise ValueError("SIR needs layers of contact that are all over the same agents.")
        shares = [1.0 / len(layers)] * len(layers) if shares is None else shares
        if len(shares) != len(layers):
            raise ValueError(f"SIR needs one share a layer, got {len(shares)} for {len(layers)} layers.")
        if not dt > 0:
            raise ValueError(f"SIR needs a positive step `dt` in days, got {dt}.")
        self.layers = layers
        self.shares = jnp.asarray(shares, dtype=float)
        self.dt = float(dt)

    @classmethod
    def small_world(cls, n_agents: int = 1000, household: int = 4, group: int = 20, seed: int = 0) -> "SIR":
        """Households of consecutive agents and random groups (schools, workplaces), half of contact each."""
        return cls((random_groups(n_agents, household, contiguous=True), random_groups(n_agents, group, seed=seed)))

    def init(self, params, rng):
        infected = first_cases(params.initial, self.layers[0].n_agents, rng)
        return SIRState(1 - infected, infected)

    def step(self, params, state, inputs_t, rng):
        hazard = params.beta * force_of_infection(self.layers, self.shares, state.infected)
        caught = rng.bernoulli(probability_within(hazard, self.dt), site="infection", where=state.susceptible)
        recovers = rng.bernoulli(probability_within(params.gamma, self.dt), site="recovery", where=state.infected)
        return SIRState(state.susceptible - caught, state.infected + caught - recovers)

    def observe(self, params, state, inputs_t, rng):
        infected, susceptible = jnp.sum(state.infected), jnp.sum(state.susceptible)
        return {"infected": infected, "recovered": self.layers[0].n_agents - infected - susceptible}

    @property
    def n_agents(self):
        return self.layers[0].n_agents

    @property
    def default_steps(self):
        return 60
