"""Small models that the tests reason about."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from calibrant import AbstractModel, Params, parameter


class DriftParams(Params):
    theta: Float[Array, ""] = parameter(0.3, prior=dist.Normal(0.0, 1.0))


class Drift(AbstractModel):
    """`x_t = x_{t-1} + theta`."""

    Params = DriftParams

    def init(self, params, rng):
        return jnp.zeros((), params.theta.dtype)

    def step(self, params, state, inputs_t, rng):
        return state + params.theta

    def observe(self, params, state, inputs_t, rng):
        return state


class LagsParams(Params):
    a: Float[Array, ""] = parameter(0.7)
    b: Float[Array, " 2"] = parameter([0.4, -0.3])
    start: Float[Array, ""] = parameter(0.5)


class Lags(AbstractModel):
    """A smooth nonlinear model with three lags, noise, inputs, several outputs, and in its state an integer and a float
    that no parameter moves."""

    Params = LagsParams

    def init(self, params, rng):
        x = jnp.stack([params.start, jnp.sin(params.start), params.a * params.start])
        return {"lags": x, "count": jnp.zeros((), jnp.int32), "speed": 1 + 0.2 * rng.uniform("speed", dtype=x.dtype)}

    def step(self, params, state, inputs_t, rng):
        x = state["lags"]
        noise = 0.1 * rng.normal("noise", dtype=x.dtype)
        new = jnp.tanh(params.a * x[0] + params.b[0] * x[1] * x[2] + params.b[1] * jnp.cos(x[2]) + inputs_t + noise)
        new = state["speed"] * new
        return {"lags": jnp.stack([new, x[0], x[1]]), "count": state["count"] + 1, "speed": state["speed"]}

    def observe(self, params, state, inputs_t, rng):
        x = state["lags"]
        return {"y": x[0] + params.a * x[2], "both": x[:2] ** 2, "count": state["count"]}


class RelayParams(Params):
    theta: Float[Array, " n"] = parameter(jnp.ones(2))


class Relay(AbstractModel):
    """What the parameters move reaches the second and third part of the state one step later each; the fourth never."""

    Params = RelayParams

    def init(self, params, rng):
        return 0.0, 0.0, 0.0, rng.normal("noise", (100_000,))

    def step(self, params, state, inputs_t, rng):
        x, y, z, noise = state
        return x + jnp.sum(params.theta**2), jnp.sin(x) + y, jnp.sin(y) + z, noise

    def observe(self, params, state, inputs_t, rng):
        return state[2] * (1 + jnp.mean(state[3]))


class FlipsParams(Params):
    p: Float[Array, ""] = parameter(0.4)
    q: Float[Array, ""] = parameter(0.3)


class Flips(AbstractModel):
    """Bernoulli draws over several steps, with continuous state in between. Enumerable: 2^(agents x steps) outcomes."""

    agents: int = eqx.field(default=2, static=True)

    Params = FlipsParams

    def init(self, params, rng):
        return {"on": jnp.zeros((self.agents,), params.p.dtype), "level": jnp.zeros((), params.p.dtype)}

    def step(self, params, state, inputs_t, rng):
        prob = jax.nn.sigmoid(2 * params.p - 1 + state["level"] - params.q * state["on"])
        on = rng.bernoulli(prob, site="flip")
        level = 0.5 * state["level"] + params.q * jnp.sum(on) - 0.3 * on[0]
        return {"on": on, "level": level}

    def observe(self, params, state, inputs_t, rng):
        return state["level"] * (1 + params.q)


class ChoiceParams(Params):
    a: Float[Array, ""] = parameter(0.5)
    b: Float[Array, ""] = parameter(-0.4)


class Choice(AbstractModel):
    """Categorical draws (three categories) over several steps, with continuous state in between."""

    Params = ChoiceParams

    def init(self, params, rng):
        return jnp.zeros((), params.a.dtype)

    def step(self, params, state, inputs_t, rng):
        logits = jnp.stack([jnp.zeros_like(state), params.a + state, params.b - state])
        chosen = rng.categorical(jax.nn.softmax(logits), site="choice")
        return 0.5 * state + jnp.sum(chosen * jnp.stack([params.a * 0 - 1.0, params.a * 0 + 0.5, 1.0 + params.b]))

    def observe(self, params, state, inputs_t, rng):
        return state


class TradeParams(Params):
    a: Float[Array, ""] = parameter(0.5)
    b: Float[Array, ""] = parameter(0.8)


class Trade(AbstractModel):
    """A step has a Bernoulli draw, whether there is news, and a categorical one that depends on it: sell, wait, or buy.
    The price goes on from both."""

    Params = TradeParams

    def init(self, params, rng):
        return jnp.zeros((), params.a.dtype)

    def step(self, params, state, inputs_t, rng):
        news = rng.bernoulli(jax.nn.sigmoid(params.a - state), site="news")
        lean = params.b * (news - 0.4) - 0.3 * state
        traded = rng.categorical(jax.nn.softmax(jnp.stack([-lean, 0 * lean, lean])), site="trade")
        return 0.7 * state + 1.2 * traded[2] - 0.3 * traded[0] + 0.5 * params.a * news

    def observe(self, params, state, inputs_t, rng):
        return state


class ContagionParams(Params):
    beta: Float[Array, ""] = parameter(1.2)
    gamma: Float[Array, ""] = parameter(0.5)


class Contagion(AbstractModel):
    """Three agents, one infected: `where=` decides who may fall ill or recover."""

    Params = ContagionParams

    def init(self, params, rng):
        one = jnp.ones((), params.beta.dtype)
        infected = jnp.stack([one, 0 * one, 0 * one])
        return 1 - infected, infected

    def step(self, params, state, inputs_t, rng):
        susceptible, infected = state
        others = jnp.sum(infected) - infected
        caught = rng.bernoulli(-jnp.expm1(-params.beta * others / 2), site="infection", where=susceptible)
        well = rng.bernoulli(-jnp.expm1(-params.gamma), site="recovery", where=infected)
        return susceptible - caught, infected + caught - well

    def observe(self, params, state, inputs_t, rng):
        return jnp.sum(state[1])


class Chain(AbstractModel):
    """Two draws a step, the second of which depends on the first: one after the other, or in an inner loop."""

    inner: bool = eqx.field(default=False, static=True)

    Params = FlipsParams

    def init(self, params, rng):
        return jnp.zeros((), params.p.dtype)

    def step(self, params, state, inputs_t, rng):
        def probability(second, first):
            return jnp.where(second, params.q * (0.4 + 2 * first), params.p) * jnp.exp(-0.2 * state)

        if self.inner:

            def body(rng, before, second):
                drawn = rng.bernoulli(probability(second, before), site="draw")
                return drawn, drawn

            _, drawn = rng.scan(body, jnp.zeros((), params.p.dtype), jnp.arange(2) == 1)
            first, second = drawn[0], drawn[1]
        else:
            first = rng.bernoulli(probability(False, 0.0), site="first")
            second = rng.bernoulli(probability(True, first), site="second")
        return 0.6 * state + first - 0.5 * params.q + 1.5 * first * second

    def observe(self, params, state, inputs_t, rng):
        return state
