"""A biased gradient, corrected by a few finite differences an update that are remembered.

Straight-through has little noise, a bias, and one cost whatever the number of parameters d. Central differences with
common random numbers have next to no bias and cost 2 d simulations. Here an update takes straight-through at all of its
parameter values, and differences in a few *coordinates* only, one after another from update to update. What differences
say, y, is regressed on what is known without them: the parameters z and the biased gradient h of the same seeds,

    y_i = a_i + b_i' z + c_i h_i + rest            for each coordinate i, over the last updates

and the gradient of an update is the prediction. By the normal equations of least squares the rest has mean zero and is
uncorrelated with z and h, so that over the parameter values that were learned from

    E[predicted_i] = E[y_i],        E[predicted_i z'] = E[y_i z']

and these two are all that the gradient of a normal posterior's mean and scale is made of (theta = m + S noise: dE/dm =
E[g], dE/dS = E[g noise']). So the bias of h does not stay, wherever the posterior settles; what differs is the noise of
h and that of the coefficients, which falls with every update that is remembered. (Regression control variates:
Lavenberg and Welch 1981, Management Science 27: 322-335. A gradient predicted by what was learned, and put right by
what is measured: synthetic gradients, Jaderberg et al. 2017, arXiv 1608.05343.)

It belongs to the method and not to `calibrant.estimators`: it remembers, and it needs the posterior to move slowly.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant.estimators import AbstractEstimator, FiniteDifferences, Pathwise
from calibrant.estimators._solve import solve_positive
from calibrant.inference._losses import Differentiation

#: A biased gradient is a feature up to so many root mean squares of the differences: beyond, it says only its sign.
_MOST = 3.0
#: Of the regressions: so many samples' worth of "the biased gradient is right" for every feature.
_RIDGE = 1.0
#: `memory` at most this part of what has passed, since the posterior moves most at first.
_PART = 0.5
#: The memory is of the order of d^3 numbers.
_MOST_PARAMETERS = 200
#: Differences that are remembered of each coordinate, at least.
_LEAST_REMEMBERED = 2


class Memory(eqx.Module):
    """Moments of (z, h_i, y_i) for each coordinate i, the recent counting more."""

    count: Float[Array, " dim"]
    mean: Float[Array, "dim columns"]
    #: Sums of products of deviations from the mean.
    spread: Float[Array, "dim columns columns"]

    @classmethod
    def empty(cls, dim: int) -> "Memory":
        columns = dim + 2
        return cls(jnp.zeros(dim), jnp.zeros((dim, columns)), jnp.zeros((dim, columns, columns)))

    def faded(self, share: Float[Array, ""]) -> "Memory":
        """With everything counting so much less."""
        return Memory(share * self.count, self.mean, share * self.spread)

    def with_one(self, i: Int[Array, ""], seen: Float[Array, " columns"], usable: Bool[Array, ""]) -> "Memory":
        """With one more of coordinate i (Welford 1962, Technometrics 4: 419-420)."""
        count = self.count[i] + 1
        away = seen - self.mean[i]
        mean = self.mean[i] + away / count
        spread = self.spread[i] + jnp.outer(away, seen - mean)

        def put(old, new):
            return old.at[i].set(jnp.where(usable, new, old[i]))

        return Memory(put(self.count, count), put(self.mean, mean), put(self.spread, spread))

    def size(self) -> Float[Array, " dim"]:
        """Root mean square of the differences in each coordinate; of those that were not seen, or seen to do nothing,
        the largest of the others."""
        square = self.mean[:, -1] ** 2 + self.spread[:, -1, -1] / jnp.where(self.count > 0, self.count, 1)
        size = jnp.where(self.count > 0, jnp.sqrt(square), 0)
        return jnp.where(size > 0, size, jnp.max(size))

    def predicted(self, z: Float[Array, "n dim"], h: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """The gradient at each of n values, from the biased one."""

        def of_one(count, mean, spread, h):
            n = jnp.maximum(count, 1e-6)
            covariance = spread / n
            sd = jnp.sqrt(jnp.diag(covariance)[:-1])
            moving = sd > 1e2 * jnp.finfo(sd.dtype).eps * jnp.abs(mean[:-1])
            scale = jnp.where(moving, 1 / jnp.where(moving, sd, 1), 0)
            gram = covariance[:-1, :-1] * scale[:, None] * scale + _RIDGE / n * jnp.eye(scale.shape[0], dtype=sd.dtype)
            lacking = (covariance[:-1, -1] - covariance[:-1, -2]) * scale
            slope = scale * solve_positive(gram, lacking[:, None])[:, 0]
            away = jnp.concatenate([z, h[:, None]], axis=1) - mean[:-1]
            believed = count**2 / (count**2 + _RIDGE)  # of one sample a half, and of many all: no bias is to stay
            return h + believed * (mean[-1] - mean[-2]) + away @ slope

        return jax.vmap(of_one, (0, 0, 0, 1), 1)(self.count, self.mean, self.spread, h)


class Corrected(eqx.Module):
    """`estimator`, corrected by remembered finite differences: little bias, little noise, and as many simulations
    whatever the number of parameters. For `GVI`.

    Of each of d coordinates about `n = memory * differences / d` differences are remembered. Of the bias `1 / (n**2 +
    1)` is left in its mean and some `1 / (n + 1)` in how it changes with the parameters, by the ridge: with many
    parameters for the memory much of it stays. An update solves d systems of d + 1 unknowns. A derivative that is not
    finite counts as 0, since differences say what it should be.

    **Arguments:**

    - `estimator`: what is corrected.
    - `differences`: central differences an update, each of one coordinate at one of its parameter values: two
      simulations more, times `replicates`.
    - `step`: of the differences, in coordinates of the prior.
    - `memory`: updates that are remembered, on average. A longer memory has less noise and follows the posterior later.
    """

    estimator: AbstractEstimator = eqx.field(default_factory=Pathwise)
    differences: int = eqx.field(default=2, static=True)
    step: float = eqx.field(default=0.2, static=True)
    memory: int = eqx.field(default=200, static=True)

    def __check_init__(self):
        for name in ("differences", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Corrected needs `{name}` to be a whole number >= 1, got {value!r}.")
        if not (isinstance(self.step, (int, float)) and 0 < self.step < float("inf")):
            raise ValueError(f"Corrected needs a `step` above 0, got {self.step}.")

    def check(self, problem: Problem, dim: int, batch: int, replicates: int) -> None:
        """Refuse, with a `ValueError`, what it cannot correct, and more parameters than its memory can hold."""
        estimator = self.estimator
        differs = isinstance(estimator, AbstractEstimator) and not isinstance(estimator, FiniteDifferences)
        if not differs or estimator.unbiased:
            raise ValueError(
                f"Corrected corrects a biased gradient, such as Pathwise()'s, and not {type(self.estimator).__name__}; "
                "use that by itself."
            )
        if dim > _MOST_PARAMETERS:
            raise ValueError(
                f"Corrected remembers products of the parameters, {_MOST_PARAMETERS} of them at most, and there are "
                f"{dim}; use {type(self.estimator).__name__}() by itself."
            )
        if self.differences > batch * dim:
            raise ValueError(
                f"Corrected takes each of {dim} coordinates at each of {batch} values once an update at most, "
                f"and {self.differences} differences are asked for; lower `differences`, or raise `simulations`."
            )
        if self.memory * self.differences < _LEAST_REMEMBERED * dim:
            raise ValueError(
                f"Corrected with {self.differences} differences an update and a memory of {self.memory} updates "
                f"remembers less than {_LEAST_REMEMBERED} differences of each of {dim} coordinates; raise either."
            )
        self.prepare(problem, jax.random.key(0)).estimator.check(problem, batch, replicates)

    def prepare(self, problem: Problem, key: PRNGKeyArray) -> "Corrected":
        """With what of its estimator depends on the problem filled in, before the first update."""
        return dataclasses.replace(self, estimator=self.estimator.prepare(problem, key))

    def init_training(self, dim: int) -> Memory:
        """Nothing remembered."""
        return Memory.empty(dim)

    def gradients(
        self,
        memory: Memory,
        how: Differentiation,
        problem: Problem,
        prior: Prior,
        z: Float[Array, "n dim"],
        seeds: UInt32[Array, "n replicates 2"],
        update: Int[Array, ""],
    ) -> tuple[tuple[Array, Array, Array], Memory]:
        """At n coordinates: losses, whether they are finite, and gradients; and what is remembered from
        now on. `how` simulations are run and differentiated, but for the estimator."""
        mine = dataclasses.replace(how, estimator=self.estimator.at(update))
        losses, known, g = mine.gradients(problem, prior, z, seeds)
        n, dim = z.shape
        each = jnp.arange(self.differences)
        # Each pair of value and coordinate once.
        rows = (each + each // math.lcm(n, dim)) % n
        coordinates = (update * self.differences + each) % dim
        moves = self.step * jax.nn.one_hot(coordinates, dim, dtype=z.dtype)
        around = jnp.concatenate([z[rows] + moves, z[rows] - moves])
        plain = dataclasses.replace(how, estimator=Pathwise())
        sides, sides_finite = plain.losses(problem, prior, around, jnp.concatenate([seeds[rows], seeds[rows]]))
        y = (sides[: self.differences] - sides[self.differences :]) / (2 * self.step)
        derived = jnp.isfinite(g)
        known |= jnp.isfinite(losses) & ~jnp.all(derived, axis=1)
        usable = known[rows] & jnp.all(sides_finite.reshape(2, -1), axis=0)

        window = jnp.minimum(self.memory, 1 + _PART * update.astype(z.dtype))
        memory = memory.faded(1 - 1 / (1 + window))
        size = jnp.maximum(memory.size(), jnp.max(jnp.where(usable, jnp.abs(y), 0)) * (memory.count == 0))
        bound = jnp.where(jnp.max(size) > 0, _MOST * size, jnp.inf)
        h = jnp.clip(jnp.where(known[:, None] & derived, g, 0), -bound, bound)

        def learn(memory: Memory, at: Any) -> tuple[Memory, None]:
            i, row, difference, usable = at
            seen = jnp.concatenate([z[row], h[row, i][None], jnp.where(usable, difference, 0)[None]])
            return memory.with_one(i, seen, usable), None

        memory, _ = jax.lax.scan(learn, memory, (coordinates, rows, y, usable))
        return (losses, known, memory.predicted(z, h)), memory
