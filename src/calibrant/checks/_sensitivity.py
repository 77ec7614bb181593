"""Global sensitivities: which parameter, over its prior, moves which output?

First-order indices `S_i = Var(E[y | theta_i]) / Var(y)` (Sobol 1993) from one set of prior runs, by binning the runs on
each parameter: a given-data estimator (Plischke, Borgonovo, Smith 2013, European Journal of Operational Research 226:
536-550). The variance between `M` bins of noise alone, `(M - 1) / (N - M)` of that within, is taken off (adjusted
R-squared). For outputs with many numbers the variances are summed before they are divided (Gamboa, Janon, Klein,
Lagnoux 2014, Electronic Journal of Statistics 8: 575-603). A second run at the same parameters gives the share of
simulation noise, `E Var(y | theta) / Var(y)`; what is left of 1 is interactions.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.checks._identifiability import _named
from calibrant.checks._refits import coordinate_names
from calibrant.checks._synthetic import as_data
from calibrant.posteriors import Posterior

_SEEDS = 0x53450000


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """First-order indices over the prior.

    By output stream: `first`, shape (parameters,), of the stream as a whole, with standard errors `error` (bootstrap
    over runs); `by_point`, (data points, parameters), of each of its numbers, NaN where it never changes; `noise`,
    share of simulation noise.
    """

    names: tuple[str, ...]
    first: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    by_point: dict[str, np.ndarray]
    noise: dict[str, float]
    runs: int
    failed: int

    def sentence(self) -> str:
        """In words."""
        said = []
        for stream, s in self.first.items():
            order = np.argsort(-s)
            main = ", ".join(f"{self.names[i]} {s[i]:.0%}" for i in order[:3] if s[i] > 0.02) or "no parameter alone"
            said.append(f"{stream}: {main}, simulation noise {self.noise[stream]:.0%}")
        return "Over the prior, variance of the outputs is due to " + "; ".join(said) + "; the rest to interactions."

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": self.runs,
            "failed": self.failed,
            "first_order": {
                stream: {
                    n: {"index": float(x), "error": float(e)}
                    for n, x, e in zip(self.names, s, self.error[stream], strict=True)
                }
                for stream, s in self.first.items()
            },
            "noise": self.noise,
        }


def first_order(x: np.ndarray, y: np.ndarray, *, bins: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the conditional mean, by binning on the ranks of each column of `x`, adjusted for chance.

    **Arguments:** `x`, shape (runs, parameters); `y`, (runs, outputs); `bins` of equal count, about
    `runs^(1/3) * 1.5` by default.

    **Returns:** partial variances, shape (outputs, parameters), and variances, (outputs,).

    **Raises:** `ValueError` for fewer than 30 runs.
    """
    n, dim = x.shape
    if n < 30:
        raise ValueError(f"Sensitivities need 30 runs or more, got {n}.")
    bins = int(np.clip(round(1.5 * n ** (1 / 3)), 4, 50)) if bins is None else bins
    variance = np.var(y, axis=0, ddof=1)
    partial = np.empty((y.shape[1], dim))
    centred = y - y.mean(axis=0)
    for i in range(dim):
        which = np.argsort(np.argsort(x[:, i], kind="stable"), kind="stable") * bins // n
        count = np.bincount(which, minlength=bins).astype(float)
        member = np.zeros((bins, n))
        member[which, np.arange(n)] = 1
        means = member @ centred / count[:, None]
        between = np.sum(count[:, None] * means**2, axis=0)
        within = np.sum(centred**2, axis=0) - between
        partial[:, i] = np.maximum(between - (bins - 1) / (n - bins) * within, 0) / (n - 1)
    return partial, variance


def sensitivity(
    problem: Problem, posterior: Posterior, *, runs: int = 1000, at_once: int = 20, seed: int = 0
) -> Sensitivity:
    """Simulate at draws of the prior, twice each, and attribute the variance of the outputs.

    **Raises:** `ValueError` where fewer than 30 runs are finite.
    """
    prior = posterior.prior
    values = prior.sample(jax.random.key(seed), runs)
    words = seeds(seed, (runs, 2), stream=_SEEDS)

    @compiled
    def run(problem: Problem, values: Any, words: Any) -> Any:
        def one(x):
            params = problem.with_values(x[0])

            def outputs(seed):
                out = simulate(problem.model, params, seed=seed, steps=problem.steps, inputs=problem.inputs).outputs
                return as_data(out, problem.data)

            return jax.vmap(outputs)(x[1])

        return jax.lax.map(one, (values, words), batch_size=at_once)

    out = run(problem, values, words)
    x = np.asarray(jax.jit(jax.vmap(prior.unconstrain))(values), dtype=float)
    flat = {}
    for (name, data), leaf in zip(_named(problem.data), jax.tree.leaves(out), strict=True):
        seen = np.isfinite(data)
        flat[name] = np.asarray(leaf, dtype=float)[:, :, seen].reshape(runs, 2, -1)
    finite = np.all([np.all(np.isfinite(y), axis=(1, 2)) for y in flat.values()], axis=0)
    finite &= np.all(np.isfinite(x), axis=1)
    x = x[finite]
    rng = np.random.default_rng(seed)
    resampled = [rng.integers(0, len(x), len(x)) for _ in range(50)] if len(x) else []
    first, error, by_point, noise = {}, {}, {}, {}
    for name, y in flat.items():
        y = y[finite]
        partial, variance = first_order(x, y[:, 0])
        total = float(variance.sum())
        first[name] = partial.sum(axis=0) / total if total > 0 else np.zeros(len(x.T))
        again = [first_order(x[i], y[i, 0]) for i in resampled]
        error[name] = np.std([p.sum(axis=0) / max(v.sum(), np.finfo(float).tiny) for p, v in again], axis=0)
        by_point[name] = partial / np.where(variance > 0, variance, np.nan)[:, None]
        within = np.mean((y[:, 0] - y[:, 1]) ** 2, axis=0).sum() / 2
        noise[name] = float(within / total) if total > 0 else 0.0
    return Sensitivity(
        names=coordinate_names(prior),
        first=first,
        error=error,
        by_point=by_point,
        noise=noise,
        runs=int(finite.sum()),
        failed=int(runs - finite.sum()),
    )
