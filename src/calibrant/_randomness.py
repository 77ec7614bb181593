"""Named random draws that are the same in every AD mode, chunk, second pass and device layout.

A draw is a function of (64-bit seed, phase and step, iterations named with `at`, site, index of the agent) and of
nothing else. Keys are derived along that path with Threefry; the agent's index is the counter of the last block, so
agent `i` draws the same number however many other agents there are and wherever it lives.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from calibrant._jax import Tracer, is_repeated, parent_of, place_of_trace, trace_at, trace_of
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan, Draw
from calibrant._threefry import threefry2x32, uniform_from_bits

Key = tuple[Array, Array]

# Second counter words that keep derivations of different kinds apart.
PHASES = {"init": 0x494E4954, "step": 0x53544550, "observe": 0x4F425356}
_ITERATION = 0x49544552
_SEEDS = 0x53454544


def as_seed(seed: "int | Array | np.ndarray") -> UInt32[Array, "... 2"]:
    """A 64-bit seed as two `uint32` words, from a non-negative Python integer or from such words."""
    if isinstance(seed, (int, np.integer)):
        if not 0 <= int(seed) < 2**64:
            raise ValueError(f"A seed is an integer from 0 to 2^64 - 1, got {seed}.")
        return jnp.array([int(seed) >> 32, int(seed) & 0xFFFFFFFF], dtype=jnp.uint32)
    seed = jnp.asarray(seed)
    if seed.dtype != jnp.uint32 or seed.shape[-1:] != (2,):
        raise ValueError(
            f"A seed is an integer or a uint32 array whose last axis is 2, got {seed.dtype} of shape {seed.shape}; "
            "`calibrant.seeds(seed, shape)` makes many from one."
        )
    return seed


def seeds(seed: "int | Array", shape: int | tuple[int, ...], stream: "int | Array" = 0) -> UInt32[Array, "*shape 2"]:
    """Independent seeds derived from one.

    **Arguments:** `seed`, an integer or two `uint32` words; `shape`, how many; `stream`, an integer that separates
    unrelated uses of the same seed (an update number, say).

    **Returns:** `uint32` array of shape `(*shape, 2)`. Element `i` does not depend on how many are asked for.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    words = as_seed(seed)
    key = threefry2x32((words[..., 0], words[..., 1]), (jnp.asarray(stream).astype(jnp.uint32), jnp.uint32(_SEEDS)))
    count = int(np.prod(shape, dtype=np.int64))
    out = threefry2x32(key, (jnp.arange(count, dtype=jnp.uint32), jnp.uint32(0)))
    return jnp.stack(out, axis=-1).reshape(*shape, 2)


def _site_words(site: str) -> Key:
    digest = hashlib.blake2b(site.encode(), digest_size=8).digest()
    return jnp.uint32(int.from_bytes(digest[:4], "little")), jnp.uint32(int.from_bytes(digest[4:], "little"))


class _Ledger:
    """Sites used, and notes taken, while one function is traced."""

    def __init__(self, recorder: AbstractRecorder | None, taken: "frozenset[tuple]" = frozenset()):
        self.recorder = recorder
        self.taken: set[tuple] = set(taken)
        self.notes: list[PyTree[Array]] = []

    def take(self, site: str, path: tuple) -> None:
        if (site, path) in self.taken:
            raise ValueError(
                f"The site '{site}' is drawn twice in one step, which would repeat the same numbers; "
                "give each draw its own site name."
            )
        self.taken.add((site, path))

    def total(self) -> PyTree[Array]:
        """The notes of all draws, added up."""
        if not self.notes:
            return jnp.zeros(()) if self.recorder is None else self.recorder.zero()
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), self.notes)


def _computed_again(note: Callable) -> Callable:
    """In a reverse pass, from the draw and its probability, instead of keeping several numbers an agent and step."""
    return jax.checkpoint(note, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]


def _summed(notes: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), notes)


def _once(x: Array) -> Array:
    """Compute `x` once: XLA would otherwise fuse the generator into every use of its numbers and run it again there."""
    return jax.lax.optimization_barrier(x)


class _Traced:
    """The label of a traced iteration: itself, kept alive."""

    def __init__(self, index: Any):
        self.index = index


_EACH = "each"


class Randomness:
    """The source of all random draws of a model, handed to `init`, `step` and `observe`.

    Not a PyTree and not to be kept: it belongs to one call. The first axis of a draw is the axis of agents. A `site`
    is the name of a draw, unique within the call.

    Inside an inner `jax.lax.scan`, `jax.vmap` or `jax.lax.cond` a bare draw is refused, since it would silently repeat
    itself. Use `rng.scan`, `rng.vmap` and `rng.cond`, which hand the inner function a source of its own, or say which
    iteration it is with `rng.at(i)`, or that a block runs once with `rng.once()`.
    """

    def __init__(
        self,
        key: Key,
        rule: AbstractSamplingPlan,
        *,
        recorder: AbstractRecorder | None = None,
        when: "tuple[str, Any]" = ("step", 0),
        _path: tuple = (),
        _ledger: _Ledger | None = None,
    ):
        self._key = key
        self._rule = rule
        self._when = when
        self._path = _path
        self._ledger = _Ledger(recorder) if _ledger is None else _ledger
        self._here = place_of_trace()
        self._home = self._here  # where records can be collected

    @classmethod
    def of_step(
        cls,
        seed: UInt32[Array, "2"],
        phase: str,
        step: "int | Array",
        rule: AbstractSamplingPlan,
        *,
        recorder: AbstractRecorder | None = None,
    ) -> "Randomness":
        """The source for one call of `init`, `step` or `observe` (`phase`) at one time step."""
        counter = (jnp.asarray(step).astype(jnp.uint32), jnp.uint32(PHASES[phase]))
        return cls(threefry2x32((seed[0], seed[1]), counter), rule, recorder=recorder, when=(phase, step))

    # Draws ------------------------------------------------------------------------------------------------------

    def uniform(
        self, site: str, shape: tuple[int, ...] = (), *, agents: Array | None = None, dtype=None
    ) -> Float[Array, "*shape"]:
        """Uniforms strictly inside (0, 1), resolved to 2^-32.

        `shape[0]` counts agents. `agents` gives their indices in the whole population where they are not
        `0, 1, 2, ...` (one shard of it, say).
        """
        return self._uniform(self._site_key(site), shape, agents, dtype)

    def normal(
        self, site: str, shape: tuple[int, ...] = (), *, agents: Array | None = None, dtype=None
    ) -> Float[Array, "*shape"]:
        """Standard normals, by inversion. Scale and shift them with parameters: the gradient is then exact."""
        return jax.scipy.special.ndtri(self.uniform(site, shape, agents=agents, dtype=dtype))

    def exponential(
        self, site: str, shape: tuple[int, ...] = (), *, agents: Array | None = None, dtype=None
    ) -> Float[Array, "*shape"]:
        """Standard exponentials, by inversion."""
        return -jnp.log(self.uniform(site, shape, agents=agents, dtype=dtype))

    def bernoulli(
        self,
        p: "Float[Array, '...'] | float",
        *,
        site: str,
        where: "Array | float | None" = None,
        shape: tuple[int, ...] | None = None,
        agents: Array | None = None,
    ) -> Float[Array, "..."]:
        """One event an agent, as floats whose derivative the sampling rule chose.

        **Arguments:**

        - `p`: probabilities. Values outside [0, 1] are treated as the nearest bound.
        - `where`: 1 for agents who decide at all and 0 for others, as the (possibly differentiable) state that it is.
          The draw is of the event `where * p`; an excluded agent adds no score.
        - `shape`: of the draw, if `p` and `where` are to be broadcast to it.
        - `agents`: indices of the agents in the whole population, if not `0, 1, 2, ...`.
        """
        p = jnp.asarray(p)
        p = p if jnp.issubdtype(p.dtype, jnp.floating) else p.astype(float)
        where = jnp.ones((), p.dtype) if where is None else jnp.asarray(where).astype(p.dtype)
        shape = jnp.broadcast_shapes(p.shape, where.shape) if shape is None else shape
        p, where = jnp.broadcast_to(p, shape), jnp.broadcast_to(where, shape)
        draw = self._draw(site)
        sample = self._rule.of(draw).bernoulli(p, where, self._uniform(self._site_key(site), shape, agents, p.dtype))
        if self._ledger.recorder is not None:
            note = functools.partial(self._ledger.recorder.bernoulli, draw)
            self._record(site, _computed_again(note)(sample, p, where))
        return sample

    def categorical(
        self,
        p: Float[Array, "... k"],
        *,
        site: str,
        shape: tuple[int, ...] | None = None,
        agents: Array | None = None,
    ) -> Float[Array, "... k"]:
        """One of `k` categories an agent, one-hot, as floats whose derivative the sampling rule chose.

        **Arguments:** `p`, probabilities that sum to one over the last axis; `shape`, of the draw without the axis of
        categories, if `p` is common to many agents.
        """
        p = jnp.asarray(p)
        if p.ndim == 0 or p.shape[-1] < 2:
            raise ValueError(
                f"rng.categorical at site '{site}' needs at least two categories on the last axis, got shape {p.shape}."
            )
        shape = p.shape[:-1] if shape is None else shape
        k = p.shape[-1]
        # Categories first from here on, broadcast against the agents only where it is needed.
        p = jnp.moveaxis(p, -1, 0)
        p = p.reshape(k, *[1] * (len(shape) + 1 - p.ndim), *p.shape[1:])
        key = self._site_key(site)
        u = self._uniform(key, shape, agents, p.dtype)

        def exponentials():
            more = threefry2x32(key, (jnp.uint32(0xFFFFFFFF), jnp.uint32(0xFFFFFFFF)))
            return -jnp.log(jnp.moveaxis(self._uniform(more, (*shape, k + 1), agents, p.dtype), -1, 0))

        draw = self._draw(site)
        sample = self._rule.of(draw).categorical(p, u, exponentials)
        if self._ledger.recorder is not None:
            note = functools.partial(self._ledger.recorder.categorical, draw)
            self._record(site, _computed_again(note)(sample, p))
        return jnp.moveaxis(sample, 0, -1)

    def key(self, site: str) -> Array:
        """A `jax.random` key of this site, for distributions that are not offered here.

        What is drawn from it with `jax.random` is deterministic in (seed, step, site), but agent `i` no longer draws
        the same whatever the number of agents; discrete draws made that way have no gradient.
        """
        k0, k1 = self._site_key(site)
        return jax.random.wrap_key_data(jnp.stack([k0, k1]), impl="threefry2x32")

    # Control flow inside a step ------------------------------------------------------------------------------------

    def at(self, i: "int | Array") -> "Randomness":
        """The source for iteration `i` of an inner loop.

        Inside the body of an inner `scan` or `vmap`, `i` must be an index that the loop itself provides, or every
        iteration would draw the same. Nested loops chain: `rng.at(outer).at(inner)`, each called in its own loop.
        """
        here = place_of_trace()
        if here != self._here:
            current = trace_at(here)
            if trace_of(i) is not current:
                self._refuse(
                    "rng.at(i) was called inside an inner scan, vmap or cond with an index that does not come from it, "
                    "so every iteration would draw the same numbers; pass the loop's own index, or use rng.once() "
                    "in a cond, a jit or a checkpoint"
                )
            parent = parent_of(current)
            if parent is not None and parent is not trace_at(self._here):
                self._refuse(
                    "rng.at(i) names the inner loop but not the loop around it, whose iterations would all draw the "
                    "same numbers; chain rng.at(outer) in the outer loop and .at(inner) in the inner one"
                )
        index = jnp.asarray(i).astype(jnp.uint32)
        label = _Traced(i) if isinstance(i, Tracer) else int(i)
        return self._derived(threefry2x32(self._key, (index, jnp.uint32(_ITERATION))), (*self._path, label))

    def once(self) -> "Randomness":
        """The same source, for a block that runs at most once a call: a branch of `cond`, a `jit`, a `checkpoint`."""
        here = place_of_trace()
        if here != self._here and is_repeated(trace_at(here)):
            self._refuse(
                "rng.once() was called inside an inner scan, while_loop or vmap, which runs many times; "
                "use rng.scan, rng.vmap or rng.at(i)"
            )
        return self._derived(self._key, self._path)

    def scan(self, body: Callable, init: Any, xs: Any = None, length: int | None = None) -> tuple[Any, Any]:
        """`jax.lax.scan` whose `body(rng, carry, x)` gets a source of its own in every iteration."""
        n = length if xs is None else jax.tree.leaves(xs)[0].shape[0]
        if n is None:
            raise ValueError("rng.scan needs `xs` or `length`.")

        used = []

        def inner(carry, ix):
            i, x = ix
            rng = self._inner(self.at(i), _EACH)
            carry, y = body(rng, carry, x)
            used.append(rng._ledger.taken)
            return carry, (y, rng._ledger.total())

        carry, (ys, notes) = jax.lax.scan(inner, init, (jnp.arange(n), xs), length=n)
        self._adopt(_summed(notes), used)
        return carry, ys

    def vmap(self, fn: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
        """`jax.vmap` of `fn(rng, *args)`, each element with a source of its own."""

        def outer(*args):
            axes = in_axes if isinstance(in_axes, (tuple, list)) else (in_axes,) * len(args)
            sizes = {
                leaf.shape[axis]
                for axis, arg in zip(axes, args, strict=True)
                if isinstance(axis, int)
                for leaf in jax.tree.leaves(arg)
            }
            if len(sizes) != 1:
                raise ValueError(f"rng.vmap needs mapped arguments of one common size, got sizes {sorted(sizes)}.")

            used = []

            def inner(i, *args):
                rng = self._inner(self.at(i), _EACH)
                out = fn(rng, *args)
                used.append(rng._ledger.taken)
                return out, rng._ledger.total()

            out, notes = jax.vmap(inner, (0, *axes), (out_axes, 0))(jnp.arange(sizes.pop()), *args)
            self._adopt(_summed(notes), used)
            return out

        return outer

    def cond(self, pred: Array, true_fn: Callable, false_fn: Callable, *operands: Any) -> Any:
        """`jax.lax.cond` whose branches are called as `fn(rng, *operands)`. Both may use the same sites."""
        used = []

        def branch(fn):
            def run(*operands):
                rng = self._inner(self.once())
                out = fn(rng, *operands)
                used.append(rng._ledger.taken)
                return out, rng._ledger.total()

            return run

        out, notes = jax.lax.cond(pred, branch(true_fn), branch(false_fn), *operands)
        self._adopt(notes, used)
        return out

    # Internals ------------------------------------------------------------------------------------------------------

    @property
    def notes(self) -> PyTree[Array]:
        """What the recorder noted of the discrete draws made so far, added up."""
        return self._ledger.total()

    def under(self, rule: AbstractSamplingPlan, *, recorded: bool) -> "Randomness":
        """The same numbers under another rule; unless `recorded`, with sites of its own and seen by no recorder."""
        ledger = self._ledger if recorded else _Ledger(None)
        return Randomness(self._key, rule, when=self._when, _path=self._path, _ledger=ledger)

    def _draw(self, site: str) -> Draw:
        return Draw(self._when[0], self._when[1], site, bool(self._path))

    def _derived(self, key: Key, path: tuple) -> "Randomness":
        out = Randomness(key, self._rule, when=self._when, _path=path, _ledger=self._ledger)
        out._home = self._home
        return out

    def _inner(self, rng: "Randomness", *label: str) -> "Randomness":
        """`rng` with a ledger of its own, that knows the sites taken so far (JAX may trace a body more than once)."""
        rng._path = (*self._path, *label)
        rng._ledger = _Ledger(self._ledger.recorder, frozenset(self._ledger.taken))
        rng._home = rng._here
        return rng

    def _adopt(self, notes: PyTree[Array], used: "list[set[tuple]]") -> None:
        self._ledger.taken.update(*used)
        if self._ledger.recorder is not None:
            self._ledger.notes.append(notes)

    def _record(self, site: str, notes: PyTree[Array]) -> None:
        if place_of_trace() != self._home:
            self._refuse(
                f"the estimator needs the probability of the draw at site '{site}', which cannot leave this inner "
                "function through rng.at or rng.once; use rng.scan, rng.vmap or rng.cond"
            )
        self._ledger.notes.append(notes)

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(why[0].upper() + why[1:] + ".")

    def _site_key(self, site: str) -> Key:
        if place_of_trace() != self._here:
            self._refuse(
                f"the draw at site '{site}' stands inside an inner scan, vmap, cond, jit or checkpoint, where it would "
                "silently repeat itself; use rng.scan, rng.vmap or rng.cond, or rng.at(i) with the loop's own index"
            )
        self._ledger.take(site, self._path)
        return threefry2x32(self._key, _site_words(site))

    def _uniform(self, key: Key, shape: tuple[int, ...], agents: Array | None, dtype) -> Array:
        """The agent in the first counter word, its lanes (all further axes) in pairs in the second."""
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        if dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"Draws are float32 or float64, not {dtype}; convert the parameters and the state.")
        head, lanes = shape[:1], int(np.prod(shape[1:], dtype=np.int64))
        if agents is None:
            index = jnp.arange(head[0], dtype=jnp.uint32) if head else jnp.uint32(0)
        else:
            index = jnp.asarray(agents).astype(jnp.uint32)
            if index.shape != head:
                raise ValueError(f"`agents` has shape {index.shape} but the draw is for {head} agents.")
        if lanes == 1:
            bits = threefry2x32(key, (index, jnp.uint32(0)))[0]
        else:
            # Lanes first while computing, so that the long axis of agents is contiguous; and a choice between the two
            # words of a block, not a concatenation of them, which XLA would evaluate element by element on the CPU.
            lane = jnp.arange(lanes, dtype=jnp.uint32).reshape(-1, *[1] * len(head))
            words = threefry2x32(key, (index, lane // 2))
            bits = jnp.where(lane % 2 == 0, *words)
            return jnp.moveaxis(_once(uniform_from_bits(bits, dtype)), 0, -1).reshape(shape)
        return _once(uniform_from_bits(bits, dtype)).reshape(shape)
