"""The score function with what later draws add taken out of it: a linear control variate, regressed.

With `r_s = b_s - p_s`, what the draws of step s add to their expectation, and any `lambda_s` and `V_t` that do not
depend on this simulation's draws from their step on,

    d E[L] / d theta = E[ dL/dtheta | draws fixed ]
        + E[ sum_t (L - sum_{s >= t} lambda_s r_s - V_t(x_{t-1})) d log p(b_t) / d theta ]
        + E[ sum_t lambda_t dp_t / d theta ]

because the `r_s` have mean zero given all before them, also times a score of earlier draws, and at each draw
`E[r_t d log p(b_t)] = dp_t`. In a large population the loss is nearly linear in such sums, so little is left to
multiply the score with, and there is no bias to pay for it. `MuProp` has the same form and takes `lambda` from
straight-through; here `lambda_s` is the coefficient of `r_s` in a regression of the loss on the state before step s and
on `r_s`. That needs no derivative of the simulation, and is right on average where straight-through is biased. (Control
variates for likelihood-ratio gradients: Greensmith, Bartlett, Baxter 2004, JMLR 5: 1471-1530. Here they are of the
martingale part of every step.)

What is left falls with the number of agents as far as the columns of `r_s` and the features of the state see what
matters. The state is seen through what the model observes, and through the probabilities of the draws about to be
made, summed over agents: they say how many infections to expect, and not only how many are infected. They are a part of
`V_t` where no draw that it is multiplied with comes before them.

From the last step backwards: the regression of step t explains what is left of the loss once the parts of later steps
are taken away, which is little more than the part of step t, so that few replicates teach much. It is fitted to the
*other* replicates, anew for each. What the others hardly varied in says nothing of a replicate that is elsewhere, and
in chaotic models some always is; so no sensitivity is larger than residuals of their usual size bear out, and what is
expected of a replicate lies within the range of the others.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from calibrant._sampling import Hard
from calibrant.estimators._base import AbstractEstimator, check_per_simulation
from calibrant.estimators._baselines import before
from calibrant.estimators._residuals import Columns, Residuals
from calibrant.estimators._sites import sites
from calibrant.estimators._solve import solve_positive
from calibrant.estimators.score_function import loss_of_each, score_times

#: The standard deviations of what is left of the losses by which a residual of the usual size may move it.
_MOST = 3.0


class ControlledScore(AbstractEstimator):
    """Unbiased for Bernoulli and categorical draws, with noise that falls with the population where agents mix.

    It learns from replicates, and helps little with fewer than thirty.

    **Arguments:**

    - `degree`: sensitivities are polynomials in `sqrt(p)`, with `p` the probability of a draw, which often says in what
      situation an agent is.
    - `features`: of the state, a function from the observed outputs of one simulation (leading axis: time) to an array
      (times, features); by default all numbers that `observe` returns. Sums of the draws' probabilities are added.
    - `pool`: learn from all parameter values of the batch together, with the values as further features. Then
      replicates may be 1, as in variational inference with many values an update.
    - `ridge`, of the regressions, relative to the number of simulations learned from.
    """

    degree: int = eqx.field(default=1, static=True)
    features: Callable[[Any], Array] | None = None
    pool: bool = eqx.field(default=False, static=True)
    ridge: float = 1e-3

    unbiased = True
    separable = property(lambda self: not self.pool)  # pyright: ignore[reportAssignmentType]

    def __check_init__(self):
        if self.degree < 0:
            raise ValueError(f"ControlledScore needs a degree of at least 0, got {self.degree}.")

    def check(self, problem, batch, replicates):
        super().check(problem, batch, replicates)
        count, what = (batch * replicates, "simulations") if self.pool else (replicates, "replicates of each value")
        if count < 8:
            raise ValueError(
                f"ControlledScore learns from the others what to take away, and needs at least 8 {what}, got {count}; "
                "raise them, or use ScoreFunction()."
            )
        check_per_simulation(problem, self)

    def losses(self, problem, run, values, seeds):
        batch, replicates = seeds.shape[:2]
        columns = Columns(sites(problem), self.degree)
        trajectories = run(values, seeds, Hard(), Residuals(columns))
        losses = jax.vmap(problem.evaluate)(trajectories.outputs, values)
        each = jax.vmap(lambda x, v: loss_of_each(problem, x, v))(trajectories.outputs, values)
        notes = trajectories.notes
        assert notes is not None
        times = notes["log_prob"].shape[2]
        state = jax.vmap(lambda x: before(x, times, self.features))(trajectories.observed)
        if self.pool:
            flat = jax.vmap(lambda v: ravel_pytree(v)[0])(dict(values))
            given = jnp.broadcast_to(flat[:, None, None], (batch, replicates, times, flat.shape[1]))
            state = jnp.concatenate([state, given.astype(state.dtype)], axis=3)
        residual, about_to = (notes[k].reshape(batch, replicates, times, -1) for k in ("residual", "expected"))
        frozen = jax.lax.stop_gradient((each, residual, state, about_to))
        if self.pool:
            frozen = jax.tree.map(lambda x: x.reshape(1, batch * replicates, *x.shape[2:]), frozen)
        known = jnp.asarray(np.repeat(columns.known(), columns.powers, axis=1), residual.dtype)
        advantage, sensitivity = jax.vmap(self._left_out, (0, None))(frozen, known)
        score = score_times(advantage.reshape(notes["log_prob"].shape), notes["log_prob"])
        expected = score_times(sensitivity.reshape(notes["expected"].shape), notes["expected"])
        summed = jnp.sum(score, axis=(1, 2, 3)) + jnp.sum(expected, axis=(1, 2, 3, 4))
        return losses + summed / replicates, trajectories

    def _left_out(self, seen, known):
        """For each replicate, from the others: its loss above what is known before the draws of each time and site,
        and the sensitivities."""
        everyone = jnp.arange(seen[0].shape[0])
        return jax.vmap(lambda r: self._one(r, everyone != r, seen, known))(everyone)

    def _one(self, r, others, seen, known):
        losses, residual, state, about_to = seen
        n_columns = residual.shape[2]
        weights = others.astype(losses.dtype)
        usual = jnp.sqrt(jnp.mean(_variance(residual, weights), axis=0))

        def back(y, at_t):
            residual, state, about_to = at_t
            x = jnp.concatenate([residual, state, about_to], axis=1)
            sensitivity = _ridge(x, y, weights, self.ridge)[0][:n_columns]
            most = _MOST * jnp.sqrt(_variance(y, weights)) / jnp.where(usual > 0, usual, 1)
            bounded = jnp.clip(jnp.where(usual > 0, sensitivity, 0), -most, most)
            bounded *= _useful(residual @ bounded, y, weights)
            sensitivity = jnp.where(jnp.all(jnp.abs(sensitivity) <= most), sensitivity, bounded)
            y = y - residual @ sensitivity
            low, high = (f(jnp.where(others, y, worst)) for f, worst in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))

            def above(known):
                """What is left, above what is expected of it before the draws of a site."""
                x = jnp.concatenate([state, about_to * known], axis=1)
                coefficients, intercept = _ridge(x, y, weights, self.ridge)
                return y[r] - jnp.clip(intercept + x[r] @ coefficients, 2 * low - high, 2 * high - low)

            return y, (jax.vmap(above)(known), sensitivity)

        backwards = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (residual, state, about_to))
        return jax.lax.scan(back, losses, backwards, reverse=True)[1]


def _variance(x: Float[Array, "n *k"], weights: Float[Array, " n"]) -> Float[Array, "*k"]:
    """Over the rows with weight 1."""
    n = jnp.sum(weights)
    mean = jnp.tensordot(weights, x, 1) / n
    return jnp.tensordot(weights, (x - mean) ** 2, 1) / n


def _useful(part: Float[Array, " n"], y: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """How much of a part, none to all, leaves the least variance: bounded one by one, coefficients may not fit
    together, and over many steps what is left would grow."""
    n = jnp.sum(weights)
    together = weights @ ((part - weights @ part / n) * (y - weights @ y / n)) / n
    own = _variance(part, weights)
    return jnp.clip(jnp.where(own > 0, together / jnp.where(own > 0, own, 1), 0), 0, 1)


def _ridge(x: Float[Array, "n k"], y: Float[Array, " n"], weights: Float[Array, " n"], ridge: float):
    """Coefficients and intercept of a ridge regression of the rows with weight 1."""
    n = jnp.sum(weights)
    mean_x, mean_y = weights @ x / n, weights @ y / n
    centred = (x - mean_x) * weights[:, None]
    size = jnp.sqrt(jnp.sum(centred**2, axis=0) / n)
    moving = size > 1e3 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    scale = jnp.where(moving, 1 / jnp.where(moving, size, 1), 0)
    z = centred * scale
    y = ((y - mean_y) * weights)[:, None]

    def regular(gram):
        return gram + n * ridge * jnp.eye(gram.shape[0], dtype=gram.dtype)

    # The same by the smaller of the two systems (Hastie, Tibshirani, Friedman 2009, section 18.3.5).
    few = x.shape[1] <= x.shape[0]
    solved = solve_positive(regular(z.T @ z), z.T @ y) if few else z.T @ solve_positive(regular(z @ z.T), y)
    coefficients = scale * solved[:, 0]
    return coefficients, mean_y - mean_x @ coefficients
