"""A model and its relaxation, side by side on the same random numbers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calibrant._model import AbstractModel, Params
from calibrant._problem import Problem
from calibrant._sampling import (
    AbstractSamplingPlan,
    AbstractSamplingRule,
    Hard,
    gumbels_given,
    relaxed_bernoulli,
    relaxed_categorical,
    with_tangent_of,
)


class _Tape:
    """The noise of the draws of one call, by site, while it is traced."""

    def __init__(self):
        self.noise: dict[str, Array] = {}


class TwinParams(Params):
    """Parameters of the model, and the temperature."""

    model: Params
    log_temperature: Float[Array, ""]

    def describe(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of the model."""
        return self.model.describe()

    def replace(self, values):
        return TwinParams(self.model.replace(values), self.log_temperature)


class Twin(AbstractModel):
    """Everything is a pair, hard and soft: the model, and the model with every draw relaxed at a temperature.

    Both use the same noise. The soft one depends on the parameters through that noise alone, taken as a function of
    the hard draws and their probabilities: `u(v, b, p)`, with `v` what of `u` the draw `b` does not say.
    """

    model: AbstractModel

    Params = TwinParams

    def _both(self, call: Any, params: Any, state: tuple | None, rng: Any) -> tuple:
        tape = _Tape()
        fixed = jax.lax.stop_gradient(params.model)
        states = ((), ()) if state is None else ((state[0],), (state[1],))
        hard = call(params.model, *states[0], rng=rng.under(_Hard(tape), recorded=True))
        soft = call(fixed, *states[1], rng=rng.under(_Relaxed(tape, jnp.exp(params.log_temperature)), recorded=False))
        # As the other, in dtypes too: relaxed numbers stand where hard ones stood.
        return hard, jax.tree.map(lambda a, b: jnp.asarray(b, jnp.asarray(a).dtype), hard, soft)

    def init(self, params, rng):
        return self._both(lambda p, rng: self.model.init(p, rng), params, None, rng)

    def step(self, params, state, inputs_t, rng):
        return self._both(lambda p, x, rng: self.model.step(p, x, inputs_t, rng), params, state, rng)

    def observe(self, params, state, inputs_t, rng):
        return self._both(lambda p, x, rng: self.model.observe(p, x, inputs_t, rng), params, state, rng)

    def summarise(self, params, outputs):
        fixed = jax.lax.stop_gradient(params.model)
        return self.model.summarise(params.model, outputs[0]), self.model.summarise(fixed, outputs[1])


def twin(problem: Problem, log_temperature: Float[Array, ""]) -> Problem:
    """The problem of simulating both."""
    both = Twin(problem.model), TwinParams(problem.params, log_temperature)
    return eqx.tree_at(lambda p: (p.model, p.params), problem, both)


class _Hard(AbstractSamplingPlan):
    """Hard draws, whose noise is kept."""

    tape: _Tape = eqx.field(static=True)

    hard = True

    def of(self, draw):
        return _HardDraw(self.tape, draw.site)


class _HardDraw(AbstractSamplingRule):
    tape: _Tape = eqx.field(static=True)
    site: str = eqx.field(static=True)

    hard = True

    def bernoulli(self, p, where, u):
        sample = Hard().bernoulli(p, where, u)
        # u = v p if it happened, p + v (1 - p) if not.
        decided = (where > 0) & (p > 0) & (p < 1)
        inside = jnp.where(decided, p, 0.5)
        slope = jnp.where(decided, jnp.where(u < p, u / inside, (1 - u) / (1 - inside)), 0)
        self.tape.noise[self.site] = with_tangent_of(u, jax.lax.stop_gradient(slope) * p)
        return sample

    def categorical(self, p, u, exponentials):
        sample = Hard().categorical(p, u, exponentials)
        self.tape.noise[self.site] = gumbels_given(sample, p, exponentials())
        return sample


class _Relaxed(AbstractSamplingPlan):
    """Relaxed draws from the noise that was kept."""

    tape: _Tape = eqx.field(static=True)
    temperature: Array

    hard = False

    def of(self, draw):
        return _RelaxedDraw(self.tape.noise[draw.site], self.temperature)


class _RelaxedDraw(AbstractSamplingRule):
    noise: Array
    temperature: Array

    hard = False

    def bernoulli(self, p, where, u):
        return where * relaxed_bernoulli(p, self.noise, self.temperature)

    def categorical(self, p, u, exponentials):
        return relaxed_categorical(p, self.noise, self.temperature)
