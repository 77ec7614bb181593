"""Where a model draws, found by tracing one step of it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from calibrant._loop import Loop
from calibrant._problem import Problem
from calibrant._randomness import as_seed
from calibrant._recording import AbstractRecorder
from calibrant._sampling import Draw, Hard


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a model where it draws."""

    phase: str
    name: str
    #: Of the draw, without categories.
    shape: tuple[int, ...]
    #: `None` for a Bernoulli draw.
    categories: int | None
    #: Whether it stands inside `rng.scan` or `rng.vmap` and so may draw more than once a step.
    inner: bool

    def draws(self, draw: Draw) -> bool:
        """Whether a draw is made here."""
        return (self.phase, self.name) == (draw.phase, draw.site)

    def knows(self, earlier: "Site") -> bool:
        """Whether the probabilities at a site that comes no later in the order of draws are settled before any draw
        here: inside loops they may depend on draws made here in earlier rounds."""
        return not (self.inner and earlier.inner)


class _Collector(AbstractRecorder):
    found: list[Site] = eqx.field(static=True)

    def zero(self):
        return jnp.zeros(())

    def _note(self, draw: Draw, shape: tuple[int, ...], categories: int | None) -> Array:
        site = Site(draw.phase, draw.site, tuple(shape), categories, draw.inner)
        if site not in self.found:
            self.found.append(site)
        return jnp.zeros(())

    def bernoulli(self, draw, sample, p, where):
        return self._note(draw, sample.shape, None)

    def categorical(self, draw, sample, p):
        return self._note(draw, sample.shape[1:], sample.shape[0])


def sites(problem: Problem) -> tuple[Site, ...]:
    """The discrete draws of a model, in the order in which it makes them."""
    collector = _Collector([])

    def trace(params):
        loop = Loop(problem.model, problem.inputs, as_seed(0), Hard(), problem.steps, collector)
        return loop.run(params, jax.lax.scan)

    jax.eval_shape(trace, problem.params)
    if not collector.found:
        raise ValueError(
            f"{type(problem.model).__name__} makes no draw by rng.bernoulli or rng.categorical, so there is nothing "
            "for this estimator to do; use Pathwise()."
        )
    return tuple(collector.found)
