"""Losses of sums over periods."""

import equinox as eqx
import jax
import jax.numpy as jnp

from calibrant.losses._base import AbstractLoss


class Periods(AbstractLoss):
    """A loss of sums over consecutive periods, such as weeks: `Periods(loss, 7)`.

    Periods count from the first time; one that is incomplete, or in which a value is missing, is not compared.
    """

    loss: AbstractLoss
    length: int = eqx.field(static=True)

    per_simulation = property(lambda self: self.loss.per_simulation)  # pyright: ignore
    min_replicates = property(lambda self: self.loss.min_replicates)  # pyright: ignore

    is_likelihood = property(lambda self: self.loss.is_likelihood)  # pyright: ignore

    def with_data(self, data):
        return Periods(self.loss.with_data(self._sums(data, 0)), self.length)

    def __check_init__(self):
        if self.length < 1:
            raise ValueError(f"Periods needs a length of at least 1, got {self.length}.")

    def _sums(self, tree, axis: int):
        def one(x):
            periods = x.shape[axis] // self.length
            if not periods:
                raise ValueError(f"Periods of {self.length} need at least so many times, got {x.shape[axis]}.")
            x = jax.lax.slice_in_dim(x, 0, periods * self.length, axis=axis)
            return jnp.sum(x.reshape(*x.shape[:axis], periods, self.length, *x.shape[axis + 1 :]), axis=axis + 1)

        return jax.tree.map(one, tree)

    def __call__(self, simulations, data, params):
        return self.loss(self._sums(simulations, 1), self._sums(data, 0), params)

    def terms(self, simulation, data, params):
        of_periods = self.loss.terms(self._sums(simulation, 0), self._sums(data, 0), params)
        if of_periods is None:
            return None
        times = jax.tree.leaves(simulation)[0].shape[0]
        last = self.length * jnp.arange(1, of_periods.shape[0] + 1) - 1
        return jnp.zeros((times,), of_periods.dtype).at[last].set(of_periods)

    def check(self, data):
        self.loss.check(data)

    def observe(self, key, simulation, params):
        # Noise is of the sums; each time gets its share of the noise of its period.
        def share(x, noisy):
            whole = jnp.repeat(noisy, self.length, axis=0)
            sums = jnp.repeat(self._sums(x, 0), self.length, axis=0)
            inside = x[: whole.shape[0]] * whole / jnp.maximum(sums, jnp.finfo(x.dtype).tiny)
            return jnp.concatenate([inside, x[whole.shape[0] :]])

        noisy = self.loss.observe(key, self._sums(simulation, 0), params)
        return jax.tree.map(share, simulation, noisy)

    @property
    def parameters(self):
        return self.loss.parameters
