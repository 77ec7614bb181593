"""Posterior predictive checks: does the model, at the posterior, simulate data like the observed ones?

A p-value is the probability that a summary of data simulated at the posterior exceeds that of the observed (Gelman,
Meng, Stern 1996, Statistica Sinica 6: 733-807). The loss is a summary too, one that depends on parameters: it compares
data with simulations at the same parameters, observed data and simulated data alike (their "realised discrepancy").
These p-values are conservative: the posterior has seen the data, so they crowd around 0.5 for a model that is right.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.checks._synthetic import as_data
from calibrant.losses import AbstractLoss, MarginalLikelihood, Streams
from calibrant.posteriors import Posterior

_TRUTH, _LOSS = 0x50500000, 0x50500001

#: From data, shaped as the problem's and NaN where nothing was observed, to a number.
Summary = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class PredictiveCheck:
    """Summaries of the observed data among those of simulated data.

    `p`: probability that a simulated summary is as large as the observed one or larger, ties counting half; `error`:
    its Monte Carlo standard error; `simulated`, shape (draws,), and `observed` values; of a summary that depends on
    parameters, `observed` is an array too.
    """

    names: tuple[str, ...]
    p: np.ndarray
    error: np.ndarray
    simulated: dict[str, np.ndarray]
    observed: dict[str, np.ndarray]
    draws: int
    failed: int

    @property
    def surprising(self) -> tuple[str, ...]:
        """Summaries in the outer 1% on either side, Monte Carlo error allowed for (97.5% Clopper-Pearson bound)."""
        out = []
        for name, p in zip(self.names, self.p, strict=True):
            n = self.draws
            extreme = min(p, 1 - p) * n
            if stats.beta.ppf(0.975, extreme + 1, max(n - extreme, 1e-9)) < 0.01:
                out.append(name)
        return tuple(out)

    def sentence(self) -> str:
        """In words."""
        if not self.surprising:
            return f"Data simulated at the posterior are like the observed ones in all of {len(self.names)} summaries."
        said = []
        for name in self.surprising:
            p = self.p[self.names.index(name)]
            said.append(f"{name} ({'larger' if p < 0.5 else 'smaller'} than in simulations, p = {min(p, 1 - p):.2g})")
        return f"The observed data are unlike those that the posterior simulates in {', '.join(said)}."

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        rows = zip(self.names, self.p, self.error, strict=True)
        return {
            "draws": self.draws,
            "failed": self.failed,
            "surprising": list(self.surprising),
            "summaries": {n: {"p": float(p), "error": float(e)} for n, p, e in rows},
        }


def default_summaries(data: Any) -> dict[str, Summary]:
    """Mean, standard deviation, largest value and time of it, of every stream; of a single number, itself."""
    streams = data if isinstance(data, Mapping) else {"": data}
    out: dict[str, Summary] = {}

    def of(name: str, fn: Callable[[Array], Array]) -> Summary:
        return lambda data: fn(data[name] if name else jax.tree.leaves(data)[0])

    for name, x in streams.items():
        leaves = jax.tree.leaves(x)
        if len(leaves) != 1:
            continue
        label = f"{name}: " if name else ""
        if jnp.size(leaves[0]) == 1:
            out[f"{name or 'value'}"] = of(name, lambda x: jnp.sum(x))
            continue
        out[label + "mean"] = of(name, jnp.nanmean)
        out[label + "standard deviation"] = of(name, jnp.nanstd)
        out[label + "largest"] = of(name, jnp.nanmax)
        out[label + "time of largest"] = of(name, _peak)
    return out


def _peak(x: Array) -> Array:
    over_time = jnp.nansum(jnp.reshape(x, (x.shape[0], -1)), axis=1)
    return (1 + jnp.argmax(over_time)).astype(float)


def _parts(loss: AbstractLoss) -> dict[str, Callable]:
    """The loss, and that of every stream: name -> `(simulations, data, params)`."""
    inner = loss.loss if isinstance(loss, MarginalLikelihood) else loss
    out: dict[str, Callable] = {"loss": loss}
    if isinstance(inner, Streams) and len(inner.losses) > 1:
        for name, part in inner.losses.items():
            if isinstance(loss, MarginalLikelihood):
                part = MarginalLikelihood(part)
            out[f"loss of {name}"] = lambda x, y, params, name=name, part=part: part(x[name], y[name], params)
    return out


def predictive_check(
    problem: Problem,
    posterior: Posterior,
    *,
    summaries: Mapping[str, Summary] | None = None,
    draws: int = 400,
    replicates: int = 1,
    at_once: int = 20,
    seed: int = 0,
) -> PredictiveCheck:
    """Compare observed data with data simulated at the posterior, with the observation noise of the loss.

    **Arguments:** `summaries`, name -> function from data to a number, in place of `default_summaries`; the loss and
    that of each stream are always there. `draws` of the posterior; `replicates`, simulations that the loss compares
    data with at each (as many as the loss needs, if that is more); `at_once`, draws side by side.

    **Raises:** `ValueError` for a summary that gives no finite number of the observed data, and where no simulation is
    finite.
    """
    chosen = default_summaries(problem.data) if summaries is None else dict(summaries)
    replicates = max(replicates, problem.loss.min_replicates)
    parts = _parts(problem.loss)
    observed = {name: np.asarray(fn(problem.data), dtype=float) for name, fn in chosen.items()}
    for name, x in observed.items():
        if x.shape != () or not np.isfinite(x):
            raise ValueError(f"The summary '{name}' of the observed data is no finite number.")

    @compiled
    def run(problem: Problem, values: Any, words: Array, others: Array, keys: Array) -> Any:
        def one(x):
            values, words, others, key = x
            params = problem.with_values(values)

            def outputs(seed):
                return simulate(problem.model, params, seed=seed, steps=problem.steps, inputs=problem.inputs).outputs

            data = as_data(problem.loss.observe(key, outputs(words), values), problem.data)
            simulations = jax.vmap(outputs)(others)
            named = {**{n: getattr(params, n) for n in problem.parameter_names}, **values}
            mine = {n: fn(simulations, data, named) for n, fn in parts.items()}
            theirs = {n: fn(simulations, problem.data, named) for n, fn in parts.items()}
            return mine | {n: jnp.asarray(fn(data)) for n, fn in chosen.items()}, theirs

        return jax.lax.map(one, (values, words, others, keys), batch_size=at_once)

    key, noise = jax.random.split(jax.random.key(seed))
    values = posterior.sample(key, draws)
    words = seeds(seed, draws, stream=_TRUTH)
    others = seeds(seed, (draws, replicates), stream=_LOSS)
    simulated, theirs = jax.tree.map(np.asarray, run(problem, values, words, others, jax.random.split(noise, draws)))
    observed |= theirs
    names = (*parts, *chosen)
    finite = np.all([np.isfinite(simulated[n]) & np.isfinite(observed[n]) for n in names], axis=0)
    kept = int(finite.sum())
    if not kept:
        raise ValueError("No simulation at the posterior has finite summaries; there is nothing to compare.")
    p = []
    for name in names:
        x, y = simulated[name][finite], observed[name]
        y = y[finite] if y.ndim else y
        p.append(np.mean(x > y) + 0.5 * np.mean(x == y))
    p = np.array(p)
    # Laplace's rule, so that the error of a p-value of 0 is not 0.
    smooth = (p * kept + 1) / (kept + 2)
    return PredictiveCheck(
        names=names,
        p=p,
        error=np.sqrt(smooth * (1 - smooth) / kept),
        simulated={n: simulated[n][finite] for n in names},
        observed={n: observed[n][finite] if observed[n].ndim else observed[n] for n in names},
        draws=kept,
        failed=draws - kept,
    )
