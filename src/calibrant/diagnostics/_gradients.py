"""Are the gradients any good? Measured before a night is spent on a calibration.

At a few draws of a posterior, every candidate estimator is run from many seeds, in the coordinates of the prior, beside
central differences with common random numbers from the same seeds. A candidate is as good as its mean points the way of
the differences (bias), as little as it is noise (variance), and as little as it costs.

Direction and variance are those of *clipped* gradients, since these are what a calibration follows: its optimiser clips
to a norm of 1. Where derivatives grow with time, one gradient in a hundred may be a million times as long as the rest.
It decides what the mean is, and moves the posterior no further than any other. (Clipped here is each gradient, in the
coordinates of the prior; by the optimiser, the mean of an update's, in those of the flow.) Near the end of a
calibration gradients are short and their length counts, against that of the divergence from the prior: of it the median
is measured.
"""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._expect import expect
from calibrant._horizon import AbstractHorizon, FullHorizon, SlidingHorizon
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import as_seed, seeds
from calibrant._sampling import GumbelSoftmax, StraightThrough
from calibrant._simulate import simulate
from calibrant.estimators import AbstractEstimator, FiniteDifferences, Pathwise
from calibrant.inference import GVI, AutoMode, Corrected
from calibrant.posteriors import Posterior

_POINTS, _SEEDS = 0x47524144, 0x48454C54
#: A low temperature, to set beside the configured one.
_COLD = 0.1
#: Updates that the momentum of AdamW averages.
_AVERAGED = 10
#: The norm that `default_optimiser` clips to.
_CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to take gradients."""

    name: str
    estimator: AbstractEstimator
    horizon: AbstractHorizon = dataclasses.field(default_factory=FullHorizon)
    mode: AbstractMode = dataclasses.field(default_factory=ReverseMode)
    replicates: int = 1


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of gradients at each point (rows) in each coordinate (columns)."""

    mean: Float[np.ndarray, "points dim"]
    #: Standard error of `mean`.
    error: Float[np.ndarray, "points dim"]
    #: Of one gradient.
    sd: Float[np.ndarray, "points dim"]

    @classmethod
    def of(cls, gradients: Float[np.ndarray, "points repeats dim"]) -> "Moments":
        """Those with a NaN are left out."""
        kept = ~np.any(np.isnan(gradients), axis=2)
        count = np.maximum(np.sum(kept, axis=1), 1)[:, None]
        mean = np.nansum(gradients, axis=1) / count
        sd = np.sqrt(np.nansum((gradients - mean[:, None]) ** 2, axis=1) / np.maximum(count - 1, 1))
        return cls(mean, sd / np.sqrt(count), sd)

    @property
    def square(self) -> float:
        """Of the mean's length over all points together, corrected for its own noise."""
        return float(np.sum(self.mean**2 - self.error**2))

    @property
    def seen(self) -> bool:
        """Whether `square` is three standard errors above what noise alone has: else directions are of noise."""
        return self.square > 3 * float(np.sqrt(2 * np.sum(self.error**4)))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Gradients of a candidate, as they are and clipped one by one to a norm of 1."""

    candidate: Candidate
    raw: Moments
    clipped: Moments
    #: The median over gradients and points of a gradient's length along the differences, over theirs; 1 is unbiased.
    length: float
    #: Simulations a gradient takes, and what they cost in simulations without a derivative, measured.
    simulations: int
    forward_runs: float
    #: Gradients that were not finite, which are left out of the above, of how many.
    failed: int
    count: int

    @property
    def noise(self) -> float:
        """Squared: variance of one clipped gradient over its squared mean, both summed over coordinates and points.

        The squared mean is corrected for its own noise.
        """
        signal = self.clipped.square
        return float(np.sum(self.clipped.sd**2)) / signal if signal > 0 else float("inf")


@dataclasses.dataclass(frozen=True)
class GradientHealth:
    """What `gradients` measured; `configured` and `reference` are among the `measurements`."""

    names: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    #: Norm of the derivative of each step's outputs along a random direction, over that of the first that has one.
    growth: Float[np.ndarray, " steps"]
    #: Simulations an update of the method.
    simulations: int
    seconds_a_run: float
    #: Whether the method corrects its gradient as it goes, of which only what is to be corrected was measured.
    corrected: bool = False
    #: Whether `Corrected` can be used.
    correctable: bool = True

    @property
    def configured(self) -> Measurement:
        """Of the method as it is."""
        return self.measurements[0]

    @property
    def reference(self) -> Measurement:
        """Central differences."""
        return self.measurements[-1]

    @property
    def target(self) -> Moments:
        """The mean of the differences, clipped: what a clipped gradient without noise and bias would be."""
        f = self.reference.raw
        scale = 1 / np.maximum(1, np.linalg.norm(f.mean, axis=1, keepdims=True) / _CLIP)
        return Moments(scale * f.mean, scale * f.error, scale * f.sd)

    def alignment(self, of: Measurement) -> float:
        """Cosine between the means of clipped gradients and the `target`, over all points together; 1 is unbiased up to
        a factor. NaN where either is too noisy to have a direction."""
        target = self.target
        if not (target.seen and of.clipped.seen):
            return float("nan")
        # Both have noise of their own, which shortens the cosine; their lengths are corrected for it.
        cosine = np.sum(of.clipped.mean * target.mean) / np.sqrt(target.square * of.clipped.square)
        return float(np.clip(cosine, -1, 1))

    def progress(self, of: Measurement) -> float:
        """How far updates by these gradients go down the expected loss for the work of a forward run, up to a factor.

        An update of AdamW has one length, whatever the gradient's: what counts is the share of it that points the right
        way. That is the cosine of bias, over `sqrt(1 + noise / n)` for the mean of `n` gradients, those of some ten
        updates (of which a momentum of 0.9 is the average: Kingma and Ba 2015, arXiv 1412.6980). Negative where
        updates go up, 0 where nothing is seen.
        """
        cosine, noise = self.alignment(of), of.noise
        if not np.isfinite(cosine) or not np.isfinite(noise):
            return 0.0
        return right_way(cosine, noise, self.simulations) / max(of.forward_runs, 1e-3)

    def ratios(self, of: Measurement) -> tuple[np.ndarray, np.ndarray]:
        """Of the gradient to differences, by coordinate, and its standard error: a regression through the points."""
        f, g = self.reference.raw.mean, of.raw.mean
        square = np.maximum(np.sum(f**2, axis=0), np.finfo(float).tiny)
        ratio = np.sum(f * g, axis=0) / square
        variance = of.raw.error**2 + ratio**2 * self.reference.raw.error**2
        error = np.sqrt(np.sum(f**2 * variance, axis=0)) / square
        return ratio, error

    def by_parameter(self, of: Measurement) -> list[dict[str, Any]]:
        """A row a coordinate: over the points, the mean gradient, its bias against the differences, the standard
        errors of both, the variance of one gradient, and the signal-to-noise ratio of one (root mean squares over
        points, the signal's corrected for noise). Of gradients as they are, not clipped."""
        g, f = of.raw, self.reference.raw
        points = len(g.mean)
        error = np.sqrt(np.sum(g.error**2, axis=0)) / points
        both = np.sqrt(np.sum(g.error**2 + f.error**2, axis=0)) / points
        variance = np.mean(g.sd**2, axis=0)
        signal = np.maximum(np.mean(g.mean**2 - g.error**2, axis=0), 0)
        ratio, its_error = self.ratios(of)
        columns = {
            "mean": np.mean(g.mean, axis=0),
            "mean_error": error,
            "bias": np.mean(g.mean - f.mean, axis=0),
            "bias_error": both,
            "variance": variance,
            "signal_to_noise": np.sqrt(
                np.divide(signal, variance, out=np.full_like(signal, np.inf), where=variance > 0)
            ),
            "ratio": np.where(self.identified, ratio, np.nan),
            "ratio_error": np.where(self.identified, its_error, np.nan),
        }
        return [
            {"parameter": name} | {key: float(x[i]) for key, x in columns.items()} for i, name in enumerate(self.names)
        ]

    @property
    def identified(self) -> np.ndarray:
        """Coordinates in which differences are distinguishable from zero, at the points together (about 3 sd)."""
        f = self.reference.raw.mean
        error = np.maximum(self.reference.raw.error, 1e-6 * np.abs(f))  # of a model without noise: 0
        z = np.divide(f, error, out=np.zeros_like(f), where=error > 0)
        return np.sum(z**2, axis=0) > len(f) + 3 * np.sqrt(2 * len(f))


def right_way(cosine: float, noise: float, simulations: int) -> float:
    """The share of an update that goes the way of the differences: see `GradientHealth.progress`."""
    return cosine / float(np.sqrt(1 + noise / (_AVERAGED * simulations)))


def candidates(method: GVI, steps: int) -> list[Candidate]:
    """The method's own way, and its relatives that are worth a look."""
    replicates = method.replicates
    assert not isinstance(method.mode, AutoMode), "of a method whose plan is made"
    estimator, prefix = method.estimator, "as configured"
    if isinstance(estimator, Corrected):
        estimator, prefix = estimator.estimator, "as configured, not yet corrected"
    if isinstance(estimator, AbstractEstimator):
        horizon = f", {type(method.horizon).__name__}" if not isinstance(method.horizon, FullHorizon) else ""
        name = f"{prefix} ({type(estimator).__name__}{horizon})"
        estimator = estimator.at(jnp.zeros((), jnp.int32))  # of a schedule: where a calibration starts
        out = [Candidate(name, estimator, method.horizon, method.mode, replicates)]
        rule = estimator.rule if isinstance(estimator, Pathwise) else None
        if isinstance(rule, GumbelSoftmax) and not np.allclose(np.asarray(rule.temperature), _COLD):
            cold = Pathwise(GumbelSoftmax(_COLD, straight_through=rule.straight_through))
            out.append(
                Candidate(f"Gumbel-softmax at temperature {_COLD}", cold, method.horizon, method.mode, replicates)
            )
    else:
        out = [Candidate("straight-through, full horizon", Pathwise(), FullHorizon(), method.mode, replicates)]
    for length in (None, 0, 3, 10):
        horizon = FullHorizon() if length is None else SlidingHorizon(length)
        same = any(_straight_through(c.estimator) and eqx.tree_equal(c.horizon, horizon) for c in out)
        if not same and (length is None or length < steps):
            label = "full horizon" if length is None else f"H = {length}"
            out.append(Candidate(f"straight-through, {label}", Pathwise(), horizon, method.mode, replicates))
    return out


def _straight_through(estimator: AbstractEstimator) -> bool:
    return type(estimator) is Pathwise and isinstance(estimator.rule, StraightThrough)


def default_repeats(method: GVI) -> int:
    """32, or fewer where a gradient averages many replicates and so is less noisy: 160 simulations, 8 at least."""
    return min(32, max(8, 160 // method.replicates))


def gradients(
    problem: Problem,
    prior: Prior,
    method: GVI,
    *,
    posterior: Posterior | None = None,
    points: int = 4,
    repeats: int | None = None,
    others: "list[Candidate] | None" = None,
    step: float = 0.2,
    seed: int = 0,
) -> GradientHealth:
    """Measure gradients of the expected loss in the coordinates of the prior.

    **Arguments:**

    - `problem`, `prior`, `method`: what is to be calibrated, and how.
    - `posterior`: at whose draws; by default the one that the calibration would start at.
    - `points`: how many draws; `repeats`: gradients of each candidate at each of them, by default `default_repeats`.
    - `others`: candidates to set beside the method's own; by default straight-through under several horizons.
    - `step`: of the differences, in coordinates of the prior.

    **Returns:** a `GradientHealth`. A gradient that is not finite is left out and counted.
    """
    repeats = default_repeats(method) if repeats is None else repeats
    if points < 2 or repeats < 4:
        raise ValueError(f"Gradients need at least 2 points and 4 repeats, got {points} and {repeats}.")
    if not problem.model.differentiable:
        raise ValueError(f"{type(problem.model).__name__} has no derivative, so there are no gradients to look at.")
    words = as_seed(seed)
    method = method.planned(problem, prior)[0]
    where = method.init(problem, prior, seed).posterior if posterior is None else posterior
    key = jax.random.wrap_key_data(seeds(words, (), stream=_POINTS).reshape(2))
    z = where.sample_coordinates(key, points)[0]
    replicates = max(method.replicates, problem.loss.min_replicates)
    differences = FiniteDifferences(step)
    everyone = candidates(method, problem.steps)
    if not problem.model.in_jax:
        everyone = [c for c in everyone if isinstance(c.horizon, FullHorizon)]  # others cannot see its steps
    everyone = everyone if others is None else [everyone[0], *others]
    everyone = [dataclasses.replace(c, replicates=max(c.replicates, problem.loss.min_replicates)) for c in everyone]
    everyone.append(Candidate("central differences", differences, replicates=replicates))

    rows = jnp.repeat(z, repeats, axis=0)
    a_run = _seconds_a_run(problem, prior, method, rows, replicates)
    taken = [_taken(problem, prior, method, c, rows, points, words) for c in everyone]
    reference = Moments.of(taken[-1][0]).mean
    measured = [_measurement(problem, c, *got, reference, a_run) for c, got in zip(everyone, taken, strict=True)]
    return GradientHealth(
        names=tuple(prior.scalar_names()),
        measurements=tuple(measured),
        growth=_growth(problem, prior, z, words) if problem.model.in_jax else np.zeros(problem.steps),
        simulations=method.simulations,
        seconds_a_run=a_run,
        corrected=isinstance(method.estimator, Corrected),
        correctable=problem.model.in_jax and _correctable(problem, prior, method),
    )


def _correctable(problem: Problem, prior: Prior, method: GVI) -> bool:
    try:
        Corrected().check(problem, prior.dim, method.simulations, method.replicates)
    except ValueError:
        return False
    return True


def _taken(
    problem: Problem,
    prior: Prior,
    method: GVI,
    candidate: Candidate,
    rows: Float[Array, "n dim"],
    points: int,
    words: Array,
) -> tuple[Float[np.ndarray, "points repeats dim"], float]:
    """Gradients, NaN where they or their simulations are not finite, and the seconds that one takes."""
    n, dim = rows.shape
    simulation_seeds = seeds(words, (n, candidate.replicates), stream=_SEEDS)
    estimator = candidate.estimator

    def losses(problem, z, words, estimator):
        return expect(
            problem,
            jax.vmap(prior.constrain)(z),
            seeds=words,
            estimator=estimator,
            mode=candidate.mode,
            horizon=candidate.horizon,
            simulations_at_once=method.simulations_at_once,
        )

    @compiled
    def run(problem, z, words):
        if isinstance(estimator, FiniteDifferences):
            where, each = estimator.stencil(z, words)
            out = losses(problem, where, each, Pathwise())
            return estimator.combine(out.losses, out.finite, n)[1:]

        def total(z):
            out = losses(problem, z, words, estimator)
            return jnp.sum(out.losses), out.finite

        g, finite = jax.grad(total, has_aux=True)(z)
        return finite, g

    (finite, g), seconds = _timed(run, problem, rows, simulation_seeds)
    g = np.asarray(g, np.float64).reshape(points, -1, dim)
    kept = np.asarray(finite).reshape(points, -1) & np.all(np.isfinite(g), axis=2)
    return np.where(kept[..., None], g, np.nan), seconds / n


def _measurement(
    problem: Problem,
    candidate: Candidate,
    g: Float[np.ndarray, "points repeats dim"],
    seconds: float,
    reference: Float[np.ndarray, "points dim"],
    a_run: float,
) -> Measurement:
    kept = ~np.any(np.isnan(g), axis=2)
    along = np.sum(g * reference[:, None], axis=2) / np.maximum(
        np.sum(reference**2, axis=1)[:, None], np.finfo(float).tiny
    )
    return Measurement(
        candidate=candidate,
        raw=Moments.of(g),
        clipped=Moments.of(g / np.maximum(1, np.linalg.norm(g, axis=2, keepdims=True) / _CLIP)),
        length=float(np.median(along[kept])) if np.any(kept) else float("nan"),
        simulations=candidate.replicates * candidate.estimator.runs(problem, g.shape[2]),
        forward_runs=max(seconds / a_run, 0.0),
        failed=int(np.sum(~kept)),
        count=kept.size,
    )


def _seconds_a_run(problem: Problem, prior: Prior, method: GVI, rows: Array, replicates: int) -> float:
    words = seeds(0, (rows.shape[0], replicates))

    @compiled
    def run(problem, z):
        values = jax.vmap(prior.constrain)(z)
        return expect(problem, values, seeds=words, simulations_at_once=method.simulations_at_once).losses

    return _timed(run, problem, rows, warm_up=True)[1] / (rows.shape[0] * replicates)


def _timed(run: Any, *arguments: Any, warm_up: bool = False) -> tuple[Any, float]:
    """What a program returns, and the seconds that it takes once compiled."""
    program = run.lower(*arguments).compile()
    if warm_up:  # of what takes milliseconds, and all others are compared with
        jax.block_until_ready(program(*arguments))
    start = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    return out, time.perf_counter() - start


def _growth(problem: Problem, prior: Prior, z: Float[Array, "points dim"], words: Array) -> np.ndarray:
    """Root mean square over points of the norm of the outputs' derivative along a random direction, step by step."""
    directions = jax.random.normal(jax.random.wrap_key_data(words), z.shape, z.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    simulation_seeds = seeds(words, z.shape[:1], stream=_SEEDS + 1)

    @compiled
    def norms(problem, z, v, seeds):
        def one(x):
            z, v, seed = x

            def observed(z):
                params = problem.with_values(prior.constrain(z))
                out = simulate(problem.model, params, seed=seed, steps=problem.steps, inputs=problem.inputs).observed
                return [x for x in jax.tree.leaves(out) if eqx.is_inexact_array(x)]

            tangents = jax.jvp(observed, (z,), (v,))[1]
            return jnp.sqrt(sum(jnp.sum(t.reshape(t.shape[0], -1) ** 2, axis=1) for t in tangents))

        return jax.lax.map(one, (z, v, seeds))

    each = norms(problem, z, directions, simulation_seeds)
    size = np.sqrt(np.nanmean(np.asarray(each, np.float64) ** 2, axis=0))
    moving = size > 0
    return size / size[np.argmax(moving)] if np.any(moving) else size


def summary(health: GradientHealth) -> list[dict[str, Any]]:
    """One row a candidate."""
    return [
        {
            "candidate": m.candidate.name,
            "alignment": health.alignment(m),
            "length": m.length,
            "noise": m.noise,
            "forward_runs": m.forward_runs,
            "progress": float(health.progress(m)),
            "failed": m.failed,
        }
        for m in health.measurements
    ]


def described(health: GradientHealth) -> dict[str, Any]:
    """All numbers, for a file: what is not finite is `None`."""
    found = {
        "candidates": [
            row | {"by_parameter": health.by_parameter(m)}
            for row, m in zip(summary(health), health.measurements, strict=True)
        ],
        "growth_by_step": [float(x) for x in health.growth],
        "simulations_an_update": health.simulations,
        "seconds_a_run": health.seconds_a_run,
    }

    def finite(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: finite(v) for k, v in x.items()}
        if isinstance(x, list):
            return [finite(v) for v in x]
        return None if isinstance(x, float) and not np.isfinite(x) else x

    return finite(found)
