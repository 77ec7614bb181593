"""Gradient horizons: which paths from a parameter to an output a derivative keeps.

With `x_t = f(x_{t-1}, theta)`, `A_t = dx_t/dx_{t-1}` and `B_t` the direct dependence of `x_t` on `theta`,

    dx_t/dtheta = sum_{h=0}^{t} A_t A_{t-1} ... A_{t-h+1} B_{t-h},      B_0 = dx_0/dtheta.

The term of `h` transitions is a path of length `h + 1`. A horizon drops or damps terms by their length (Quera-Bofarull
et al. 2023, arXiv 2307.01085, section 3). It is a rule on the *linear* maps `A_t` and `B_t`, all taken along the one
true trajectory, so it means the same, and gives the same number, in every AD mode.

A horizon carries a tangent in layers through time: `start` makes the layers from `B_0 v`, `advance` takes them through
one transition, `total` adds them up.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar


Tangent = PyTree[Array]
#: `push(dx)` is `A_t dx`; `direct()` is `B_t v`; `both(dx)` is `A_t dx + B_t v` at the price of one.
Push = Callable[[Tangent], Tangent]
Direct = Callable[[], Tangent]


def _names(keep: Any) -> tuple[str, ...]:
    if isinstance(keep, str):
        raise ValueError(f"`keep` takes a tuple of names, got the string '{keep}'; write keep=('{keep}',).")
    return tuple(keep)


class AbstractHorizon(eqx.Module):
    """A rule for which paths a derivative through the loop over time keeps.

    `keep` names parameters whose paths are never cut, such as one that acts through the initial state alone.
    """

    keep: AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def start(self, dx: Tangent) -> PyTree[Array]:
        """Layers at time 0."""

    @abc.abstractmethod
    def advance(self, push: Push, direct: Direct, both: Push, layers: PyTree[Array], t: Array) -> PyTree[Array]:
        """Layers after the transition from time `t - 1` to `t >= 1`."""

    @abc.abstractmethod
    def total(self, layers: PyTree[Array]) -> Tangent:
        """The tangent of the state."""


class FullHorizon(AbstractHorizon):
    """Every path: the ordinary derivative."""

    keep: tuple[str, ...] = eqx.field(default=(), static=True, converter=_names)

    def start(self, dx):
        return dx

    def advance(self, push, direct, both, layers, t):
        del push, direct, t
        return both(layers)

    def total(self, layers):
        return layers


class SlidingHorizon(AbstractHorizon):
    """Only paths of at most `length` transitions, that is of length <= H + 1 with H = `length`.

    Exact, at the price of H + 1 tangents where the full derivative carries one. `SlidingHorizon(0)` keeps the direct
    effect of the parameters on each step.
    """

    length: int = eqx.field(static=True)
    keep: tuple[str, ...] = eqx.field(default=(), static=True, converter=_names)

    def __check_init__(self):
        if not (isinstance(self.length, int) and self.length >= 0):
            raise ValueError(f"SlidingHorizon needs a whole number of transitions >= 0, got {self.length!r}.")

    def start(self, dx):
        h = self.length
        return jax.tree.map(lambda d: jnp.concatenate([d[None], jnp.zeros((h, *d.shape), d.dtype)]), dx)

    def advance(self, push, direct, both, layers, t):
        del both, t
        newest = direct()
        if self.length == 0 or not jax.tree.leaves(newest):  # nothing of the state has a tangent
            return jax.tree.map(lambda d: d[None], newest)
        older = jax.vmap(push)(jax.tree.map(lambda a: a[:-1], layers))
        return jax.tree.map(lambda d, o: jnp.concatenate([d[None], o]), newest, older)

    def total(self, layers):
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), layers)


class BlockHorizon(AbstractHorizon):
    """Paths that stay within one block of `length` states: times 0..k-1, k..2k-1, and so on.

    The transition into every k-th state is cut, as in truncated back-propagation through time. It costs nothing
    extra, but how long a path may be depends on where in its block it starts. `BlockHorizon(1)` equals
    `SlidingHorizon(0)`.
    """

    length: int = eqx.field(static=True)
    keep: tuple[str, ...] = eqx.field(default=(), static=True, converter=_names)

    def __check_init__(self):
        if not (isinstance(self.length, int) and self.length >= 1):
            raise ValueError(f"BlockHorizon needs a whole number of steps >= 1, got {self.length!r}.")

    def start(self, dx):
        return dx

    def advance(self, push, direct, both, layers, t):
        del push, direct
        cut = t % self.length == 0
        return both(jax.tree.map(lambda d: jnp.where(cut, jnp.zeros_like(d), d), layers))

    def total(self, layers):
        return layers


class GeometricHorizon(AbstractHorizon):
    """A path of `h` transitions is weighted by `discount ** h`.

    It costs nothing extra. `GeometricHorizon(0)` equals `SlidingHorizon(0)`, `GeometricHorizon(1)` the full horizon.
    """

    discount: float | Float[Array, ""]
    keep: tuple[str, ...] = eqx.field(default=(), static=True, converter=_names)

    def __check_init__(self):
        if isinstance(self.discount, (int, float)) and not 0 <= self.discount <= 1:
            raise ValueError(f"GeometricHorizon needs a discount from 0 to 1, got {self.discount}.")

    def start(self, dx):
        return dx

    def advance(self, push, direct, both, layers, t):
        del push, direct, t
        return both(jax.tree.map(lambda d: jnp.asarray(self.discount, d.dtype) * d, layers))

    def total(self, layers):
        return layers
