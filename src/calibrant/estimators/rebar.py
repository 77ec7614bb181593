"""REBAR and RELAX: the score function with a relaxed simulation as control variate.

Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017, arXiv 1703.07370 (REBAR); Grathwohl, Choi, Wu, Roeder, Duvenaud
2018, arXiv 1711.00123 (RELAX). Let `c(u, theta)` be any smooth function of the noise `u` behind the draws `b`, and
`u(v, b, theta)` that noise as a function of the draws and of the rest `v` that they do not determine. Since
`E_u[c(u, theta)] = E_b E_v[c(u(v, b, theta), theta)]` have one derivative,

    d E[L] / d theta = E[ dL/dtheta | draws fixed ] + E[ (L - c) d log p(b; theta) / d theta ]
        + E[ dc(u, theta) / d theta ] - E[ dc(u(v, b, theta), theta) / d theta ]

With `v` taken from the same `u` that made `b`, both `c` have one value, and their derivatives differ only by the path
through `u(v, b, theta)`, so one relaxed simulation is enough:

    ... = E[ dL/dtheta | draws fixed ] + E[ (L - c) d log p(b; theta) / d theta ] - E[ dc/du du(v, b, theta)/dtheta ]

In a program of many draws, each of which depends on the ones before, `c` is a function of a whole *relaxed* simulation,
whose noise is that of the hard one, and `theta` reaches `u(v, b, theta)` through the probabilities of the hard one. Any
temperature, scale and function give the same expectation; they are trained to make the second moment of the gradient
small, by its derivative in them.
"""

import abc
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from calibrant._problem import Problem
from calibrant._recording import LogProbability
from calibrant._sampling import Hard
from calibrant._simulate import Trajectory, simulate
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._sites import sites
from calibrant.estimators._twin import twin
from calibrant.estimators.enumeration import outer
from calibrant.estimators.score_function import loss_of_each, mean_of_other_finite

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar


class AbstractControl(eqx.Module):
    """The control variate, as a function of a relaxed simulation. Its arrays are trained."""

    log_temperature: AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def __call__(
        self, problem: Problem, outputs: PyTree[Array], values: Mapping[str, Array]
    ) -> Float[Array, " replicates"]:
        """`c` for each relaxed simulation, leading axis of `outputs`: replicates."""


class ScaledLoss(AbstractControl):
    """`scale` times the loss of the relaxed simulation."""

    log_temperature: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, problem, outputs, values):
        return self.scale * loss_of_each(problem, outputs, values)


class LossAndNetwork(AbstractControl):
    """`scale` times the loss of the relaxed simulation, plus a network of its outputs."""

    log_temperature: Float[Array, ""]
    scale: Float[Array, ""]
    network: eqx.nn.MLP

    def __call__(self, problem, outputs, values):
        each = jax.vmap(lambda x: self.network(_numbers(x)))(outputs)
        return self.scale * loss_of_each(problem, outputs, values) + each


class AbstractRelaxed(AbstractEstimator):
    """The score function with a control variate of the relaxed simulation."""

    control: AbstractVar[AbstractControl | None]
    learning_rate: AbstractVar[float]

    def init_training(self) -> PyTree[Array]:
        """The state of the optimiser of the control variate."""
        return optax.adam(self.learning_rate).init(eqx.filter(self.control, eqx.is_inexact_array))  # pyright: ignore

    def trained(self, optimiser: PyTree[Array], gradients_by: Callable[[Any], Any]) -> tuple[Any, Any, PyTree[Array]]:
        """What `gradients_by(self)` gives (losses, whether they are finite, gradients), and the next estimator.

        Its control variate has moved down the second moment of the gradients, whose mean does not depend on it, so
        that this is the way of their variance. It moves after it was used: what it has learnt is of earlier draws.
        """
        moving, still = eqx.partition(self.control, eqx.is_inexact_array)

        def second_moment(moving):
            used = eqx.tree_at(lambda e: e.control, self, eqx.combine(moving, still))
            losses, finite, g = gradients_by(used)
            usable = finite & jnp.all(jnp.isfinite(g), axis=1)
            return jnp.sum(jnp.where(usable[:, None], g, 0) ** 2), (losses, finite, g)

        slope, out = jax.grad(second_moment, has_aux=True)(moving)
        slope = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), slope)
        change, optimiser = optax.adam(self.learning_rate).update(slope, optimiser)
        moved = eqx.combine(eqx.apply_updates(moving, change), still)
        return out, eqx.tree_at(lambda e: e.control, self, moved), optimiser

    def runs(self, problem, dim):
        return 2

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        check_per_simulation(problem, self)
        outer(sites(problem))
        if self.control is None:
            raise ValueError(
                f"{type(self).__name__} has a network whose size depends on the problem; call its `prepare(problem)` "
                "first (GVI does)."
            )
        if batch * replicates < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two simulations for its baseline, got one; raise `replicates`."
            )

    def losses(self, problem, run, values, seeds):
        control, replicates = self.control, seeds.shape[1]
        assert control is not None
        trajectories = run.of(twin(problem, control.log_temperature))(values, seeds, Hard(), LogProbability())
        hard, soft = trajectories.outputs
        losses = jax.vmap(problem.evaluate)(hard, values)
        fixed = jax.lax.stop_gradient(dict(values))
        each = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(hard, values)
        c = jax.vmap(lambda x, v: control(problem, x, v))(soft, fixed)
        rest = each - c
        if replicates > 1:
            without = (jnp.sum(rest, axis=1, keepdims=True) - rest) / (replicates - 1)
        else:
            without = mean_of_other_finite(rest[:, 0])[:, None]
        assert trajectories.notes is not None
        log_prob = jnp.sum(trajectories.notes, axis=2)
        # Zero, so that of the product only the second factor is differentiated by the parameters, and yet both by
        # those of the control.
        score = (rest - without) * (log_prob - jax.lax.stop_gradient(log_prob))
        along_noise = c - jax.lax.stop_gradient(c)
        surrogate = losses + jnp.sum(score - along_noise, axis=1) / replicates
        return surrogate, Trajectory(hard, trajectories.observed[0], trajectories.notes)


class REBAR(AbstractRelaxed):
    """Unbiased for Bernoulli and categorical draws, at two simulations each. The model must bear relaxed draws.

    `GVI` trains temperature and scale from update to update; in `expect` they are what they are.

    **Arguments:** `temperature` and `scale` to begin with; `learning_rate`, of their training (Adam).
    """

    control: AbstractControl
    learning_rate: float = eqx.field(static=True)

    unbiased = True
    separable = False

    def __init__(self, temperature: float = 0.5, scale: float = 1.0, *, learning_rate: float = 0.01):
        _check_temperature(self, temperature)
        self.control = ScaledLoss(jnp.log(jnp.asarray(temperature, float)), jnp.asarray(scale, float))
        self.learning_rate = learning_rate


class RELAX(AbstractRelaxed):
    """`REBAR`, with a network of the relaxed outputs added to the control variate.

    **Arguments:** as of `REBAR`; `width`, of the network's two hidden layers.
    """

    control: AbstractControl | None
    temperature: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    width: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)

    unbiased = True
    separable = False

    def __init__(self, temperature: float = 0.5, scale: float = 1.0, *, width: int = 16, learning_rate: float = 0.01):
        _check_temperature(self, temperature)
        self.control = None
        self.temperature, self.scale, self.width, self.learning_rate = temperature, scale, width, learning_rate

    def prepare(self, problem, key):
        def outputs():
            how: Any = {"seed": 0, "steps": problem.steps, "inputs": problem.inputs}
            return _numbers(simulate(problem.model, problem.params, **how).outputs)

        size = jax.eval_shape(outputs).shape[0]
        network = eqx.nn.MLP(size, "scalar", self.width, 2, activation=jax.nn.tanh, key=key)
        # It begins at zero, where it is REBAR, with a derivative that is not.
        network = eqx.tree_at(lambda n: n.layers[-1].weight, network, replace_fn=lambda w: 0 * w)
        network = eqx.tree_at(lambda n: n.layers[-1].bias, network, replace_fn=lambda b: 0 * b)
        control = LossAndNetwork(math.log(self.temperature) + jnp.zeros(()), self.scale + jnp.zeros(()), network)
        return eqx.tree_at(lambda e: e.control, self, control, is_leaf=lambda x: x is None)


def _check_temperature(estimator: AbstractEstimator, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"{type(estimator).__name__} needs a positive temperature, got {temperature}.")


def _numbers(outputs: Any) -> Float[Array, " n"]:
    """All outputs, of a size that a network can take."""
    return jnp.concatenate([jnp.arcsinh(x).ravel() for x in jax.tree.leaves(outputs) if eqx.is_inexact_array(x)])
