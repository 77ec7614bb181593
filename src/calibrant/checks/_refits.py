"""Refits: the run's method on many synthetic data sets, batches of them in one compiled program."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._progress import AbstractProgress, NoProgress
from calibrant._randomness import seeds
from calibrant.checks._calibration import CalibrationCheck, calibration
from calibrant.checks._synthetic import Make, refuse_captured, simulate_data, stacked, with_data
from calibrant.checks._where import AbstractWhere, NearData, to_prior_coordinates
from calibrant.inference import GVI
from calibrant.inference._base import State
from calibrant.posteriors import Posterior, trainable

_TRUTH, _DATA, _NOISE, _FIT, _DRAW, _REFERENCE, _BACK = range(0x43480000, 0x43480007)
#: More refits that fail than this, and the check is of the others and says nothing.
_MOST_FAILED = 0.2
#: Standard deviations of the run's posterior within which refits of its own data should end.
_NEAR = 0.3


def coordinate_names(prior: Prior) -> tuple[str, ...]:
    """Name of every unconstrained coordinate: that of the parameter, with an index where it has many."""
    return tuple(
        name + "".join(f"[{i}]" for i in index)
        for name, c in zip(prior.names, prior.coordinates, strict=True)
        for index in np.ndindex(c.shape)
    )


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Are refits long enough? "There and back": refits of synthetic data, refitted to the real data.

    Distances from the run's own posterior, in its standard deviations, by coordinate: root mean square over refits of
    the difference of means, `before` (after the synthetic data) and `after` (back at the real ones); `offset`, the mean
    difference after, which all refits share; `width`, the geometric mean of standard deviations after, over the run's.
    """

    names: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray
    offset: np.ndarray
    width: np.ndarray
    refits: int
    updates: int

    @property
    def enough(self) -> bool:
        """Whether centres come back to within 0.3 standard deviations and widths to within 15%.

        Centres that scatter by 0.3 make a right posterior look 4% too narrow.
        """
        return bool(np.all(self.after < _NEAR) and np.all(np.abs(np.log(self.width)) < 0.15))

    def sentence(self) -> str:
        """In words."""
        worst = int(np.argmax(self.after))
        off = int(np.argmax(np.abs(np.log(self.width))))
        said = (
            f"{self.refits} refits of synthetic data, refitted to the real data in {self.updates} updates each, come "
            f"back to within {self.after[worst]:.2f} standard deviations of the run's posterior ({self.names[worst]}; "
            f"they started {self.before[worst]:.2f} away), with {self.width[off]:.2f} times its width "
            f"({self.names[off]})"
        )
        if self.enough:
            return said + ": refits are long enough."
        if self.after[worst] > _NEAR and abs(self.offset[worst]) > 0.8 * self.after[worst]:
            return (
                f"{said}: all to the same side ({self.offset[worst]:+.2f}), so the run itself may be that far from its "
                "optimum; more updates of the run would tell."
            )
        return said + ": refits are too short, and the verdicts include that error; more updates would lower it."

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        rows = zip(self.names, self.before, self.after, self.offset, self.width, strict=True)
        return {
            "enough": self.enough,
            "refits": self.refits,
            "updates": self.updates,
            "parameters": {
                n: {"before": float(b), "after": float(a), "offset": float(o), "width": float(w)}
                for n, b, a, o, w in rows
            },
        }


@dataclasses.dataclass(frozen=True)
class Refits:
    """Posteriors of synthetic data. Arrays are in the unconstrained coordinates of the run's prior.

    `draws`, shape (data sets, draws, dim); `truths` and `references`, (data sets, dim); `prior_variance`, (dim,), of
    the prior of the refits. Data sets that could not be used are left out: `refused`, whose simulation was not finite
    or that the loss does not take; `failed`, whose refit was not finite.
    """

    names: tuple[str, ...]
    draws: np.ndarray
    truths: np.ndarray
    references: np.ndarray
    prior_variance: np.ndarray
    asked: int
    refused: int
    failed: int
    failed_simulations: int
    updates: int
    weight: float
    convergence: Convergence | None

    def calibration(self, *, size: float = 0.01, seed: int = 0) -> CalibrationCheck:
        """Ranks, joint coverage and verdicts."""
        return calibration(
            self.draws,
            self.truths,
            self.references,
            names=self.names,
            prior_variance=self.prior_variance,
            size=size,
            seed=seed,
        )

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "asked": self.asked,
            "used": len(self.draws),
            "refused": self.refused,
            "failed": self.failed,
            "failed_simulations": self.failed_simulations,
            "updates": self.updates,
            "weight": self.weight,
            "convergence": None if self.convergence is None else self.convergence.describe(),
        }


class Refitter:
    """Synthetic data sets of a run, and refits to them at any weight.

    **Arguments:** as of `refit`.
    """

    def __init__(
        self,
        problem: Problem,
        posterior: Posterior,
        method: GVI,
        *,
        where: AbstractWhere | None = None,
        data_sets: int = 100,
        draws: int = 999,
        at_once: int = 4,
        seed: int = 0,
        make: Make | None = None,
    ):
        if not isinstance(method, GVI):
            raise ValueError(f"Refits need the method GVI, got {type(method).__name__}.")
        for name, value, least in (("data_sets", data_sets, 10), ("draws", draws, 99), ("at_once", at_once, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is a whole number >= {least}, got {value!r}.")
        self.where = NearData() if where is None else where
        self.prior = self.where.prior(posterior)
        method = self.where.method(method)
        self.method = method.planned(problem, self.prior)[0]
        self.problem, self.posterior, self.asked = problem, posterior, data_sets
        self.draws, self.at_once, self.seed = draws, min(at_once, data_sets), seed
        if make is None:
            refuse_captured(problem.loss, problem.data)
        self._simulate(make)

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of the coordinates of the run's prior."""
        return coordinate_names(self.posterior.prior)

    def _key(self, stream: int) -> Array:
        return jax.random.wrap_key_data(seeds(self.seed, (), stream=stream).reshape(2))

    def _simulate(self, make: Make | None) -> None:
        n, prior = self.asked, self.prior
        self._u = self.where.draw(self._key(_TRUTH), n, prior)
        values = jax.jit(jax.vmap(prior.constrain))(self._u)
        words = seeds(self.seed, n, stream=_DATA)
        problems, kept, reasons = [], [], []
        if make is None:
            data = simulate_data(self.problem, values, words, jax.random.split(self._key(_NOISE), n))
            data = jax.tree.map(np.asarray, data)
        for i in range(n):
            try:
                if make is not None:
                    problem = make(self.problem, {name: x[i] for name, x in values.items()}, words[i])
                else:
                    mine = jax.tree.map(lambda x, i=i: x[i], data)  # pyright: ignore[reportPossiblyUnboundVariable]
                    _refuse_not_finite(mine, self.problem.data)
                    problem = with_data(self.problem, mine)
            except ValueError as error:
                reasons.append(str(error))
                continue
            problems.append(problem)
            kept.append(i)
        self.refused = n - len(kept)
        if len(kept) < max(10, (1 - _MOST_FAILED) * n):
            raise ValueError(
                f"{self.refused} of {n} synthetic data sets cannot be fitted, the first because: {reasons[0]}"
            )
        self._kept = np.array(kept)
        self.problems = stacked(problems, self.problem)

    def refit(
        self, weight: float | None = None, *, progress: AbstractProgress | None = None, there_and_back: bool = True
    ) -> Refits:
        """Refit every data set at a weight, the method's own by default; `there_and_back`, with `Convergence`."""
        progress = NoProgress() if progress is None else progress
        weight = float(self.method.weight if weight is None else weight)
        method = _weighted(self.method, weight)
        n, size, posterior = len(self._kept), self.at_once, self.posterior
        state = self.method.init(self.problem, self.prior, self.seed)
        words = seeds(self.seed, self.asked, stream=_FIT)[self._kept]
        keys = jax.random.split(self._key(_DRAW), self.asked)[self._kept]
        flow = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), eqx.filter(state.posterior.flow, eqx.is_array)
        )
        out, finite, failed, first = [], [], 0, None
        for begin in range(0, n, size):
            index = np.minimum(np.arange(begin, begin + size), n - 1)  # the last batch is filled with copies
            each = jax.tree.map(lambda x, i=index: x[i], self.problems.each)
            u, ok, lost, flows = _fit(
                method, self.problems.common, each, state, flow, words[index], keys[index], self.draws
            )
            count = min(size, n - begin)
            out.append(np.asarray(u)[:count])
            finite.append(np.asarray(ok)[:count])
            failed += int(np.sum(np.asarray(lost)[:count]))
            first = (flows, u, ok) if first is None else first
            progress.advance(count, f"{self.method.max_updates} updates each")
        u, ok = np.concatenate(out), np.concatenate(finite)
        bad = int(np.sum(~ok))
        if bad > _MOST_FAILED * n:
            raise ValueError(
                f"{bad} of {n} refits were not finite; lower the learning rate of the refits, or narrow the prior."
            )
        truths = np.asarray(to_prior_coordinates(self.prior, self._u[self._kept]))
        reference = self.where.draw(self._key(_REFERENCE), self.asked, self.prior)[self._kept]
        many = self.where.draw(self._key(_REFERENCE), 4000, self.prior)
        convergence = None
        if there_and_back and first is not None:
            progress.note("There and back: refits of the first batch, to the real data ...")
            convergence = self._there_and_back(state, first)
        return Refits(
            names=coordinate_names(posterior.prior),
            draws=np.asarray(to_prior_coordinates(self.prior, jnp.asarray(u[ok]))),
            truths=truths[ok],
            references=np.asarray(to_prior_coordinates(self.prior, reference))[ok],
            prior_variance=np.var(np.asarray(to_prior_coordinates(self.prior, many)), axis=0),
            asked=self.asked,
            refused=self.refused,
            failed=bad,
            failed_simulations=failed,
            updates=self.method.max_updates,
            weight=weight,
            convergence=convergence,
        )

    def _there_and_back(self, state: State, first: Any) -> Convergence:
        """Refit the first batch's flows to the real data, under the run's own prior."""
        flows, u_before, ok_before = first
        own = self.where.own(self.posterior)
        state = dataclasses.replace(state, posterior=Posterior(own, state.posterior.flow))
        size = self.at_once
        method = _weighted(self.method, float(self.method.weight))
        words = seeds(self.seed, size, stream=_BACK)
        keys = jax.random.split(self._key(_BACK), size)
        none = jax.tree.map(lambda _: None, self.problem)
        u, ok, _, _ = _fit(method, self.problem, none, state, flows, words, keys, self.draws)
        run = np.asarray(self.posterior.sample_coordinates(self._key(_BACK), 4000)[0])
        mean, sd = run.mean(axis=0), run.std(axis=0)
        usable = np.asarray(ok) & np.asarray(ok_before)
        before, after = (np.asarray(to_prior_coordinates(p, x))[usable] for p, x in ((self.prior, u_before), (own, u)))

        def distance(z: np.ndarray) -> np.ndarray:
            return np.sqrt(np.mean(((z.mean(axis=1) - mean) / sd) ** 2, axis=0))

        width = np.exp(np.mean(np.log(after.std(axis=1) / sd), axis=0))
        return Convergence(
            names=self.problem_names,
            before=distance(before),
            after=distance(after),
            offset=np.mean((after.mean(axis=1) - mean) / sd, axis=0),
            width=width,
            refits=int(usable.sum()),
            updates=method.max_updates,
        )


def _weighted(method: GVI, weight: float) -> GVI:
    """At another weight, as an array, so that it is no other program."""
    return eqx.tree_at(lambda m: m.weight, method, jnp.asarray(weight, dtype=float))


def _refuse_not_finite(data: Any, like: Any) -> None:
    for x, y in zip(jax.tree.leaves(data), jax.tree.leaves(like), strict=True):
        if not np.all(np.isfinite(x[np.isfinite(np.asarray(y))])):
            raise ValueError("its simulation was not finite.")


@compiled
def _fit(
    method: GVI, common: Problem, each: Any, state: State, flows: Any, words: Array, keys: Array, draws: int
) -> tuple[Array, Array, Array, Any]:
    """Refit a batch: draws of the posteriors in their coordinates, whether all are finite, simulations that failed, and
    the arrays of the flows."""
    dynamic, static = eqx.partition(state, eqx.is_array)

    def one(x):
        each, flow, words, key = x
        problem = eqx.combine(each, common)
        mine = eqx.combine(dynamic, static)
        fresh = eqx.combine(flow, mine.posterior.flow)
        moved = dataclasses.replace(
            mine,
            posterior=Posterior(mine.posterior.prior, fresh),
            optimiser=method._optimiser().init(trainable(fresh)[0]),  # pyright: ignore[reportArgumentType]
            seed=words,
        )
        moved, record = method.step(problem, moved, method.max_updates)
        z, _ = moved.posterior.sample_coordinates(key, draws)
        flow = eqx.filter(moved.posterior.flow, eqx.is_array)
        return z, jnp.all(jnp.isfinite(z)), jnp.sum(~record.finite), flow

    return jax.vmap(one)((each, flows, words, keys))


def refit(
    problem: Problem,
    posterior: Posterior,
    method: GVI,
    *,
    where: AbstractWhere | None = None,
    data_sets: int = 100,
    draws: int = 999,
    at_once: int = 4,
    seed: int = 0,
    make: Make | None = None,
    progress: AbstractProgress | None = None,
) -> Refits:
    """Simulate data sets, and fit the posterior of each as the run did.

    **Arguments:**

    - `problem`, `posterior`, `method`: the run.
    - `where`: `NearData()` (the default) or `PriorDraws()`; see there what each means.
    - `data_sets`, at least 10; `draws` of each posterior, at least 99.
    - `at_once`: refits side by side in one compiled program. Memory grows with it.
    - `seed`: equal seeds, equal bits.
    - `make`: `(problem, values, seed) -> problem`, where a synthetic problem differs in more than its data: inputs that
      are computed from data, say.

    **Raises:** `ValueError` for a loss that cannot be rebuilt, data sets that cannot be fitted, and where more than a
    fifth of the refits fail.
    """
    refitter = Refitter(
        problem,
        posterior,
        method,
        where=where,
        data_sets=data_sets,
        draws=draws,
        at_once=at_once,
        seed=seed,
        make=make,
    )
    return refitter.refit(progress=progress)
