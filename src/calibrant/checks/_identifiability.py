"""What do the data constrain? Contraction by parameter and by direction, and the information in the outputs.

- Contraction: `1 - var(posterior) / var(prior)` in the unconstrained coordinates, 0 for what the data do not touch and
  1 for what they fix. Directions: coordinates are whitened by the prior, so that the eigenvectors of the posterior's
  covariance are the directions that the data constrain most and least, and `1 - eigenvalue` their contraction.
- Information: `F = E J' V^-1 J`, the Gauss-Newton (for Gaussian data of fixed variance: Fisher) information, with
  `J` the derivative of the outputs in the whitened coordinates (`jax.jacfwd`), averaged over seeds, and `V` the
  variance of the data around their mean at the parameters (simulation and observation noise), taken as independent
  between data points. An eigenvalue `f` says by how much that direction would contract, `f / (1 + f)`, were the prior
  the standard normal of the coordinates and the model linear. Correlated data points make it too large.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from calibrant._problem import Problem
from calibrant._programs import compiled
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.checks._refits import coordinate_names
from calibrant.checks._synthetic import as_data
from calibrant.posteriors import Posterior

_SEEDS = 0x49440000
#: Parts of a direction below this are not named.
_NAMED = 0.25
#: Derivatives (per standard deviation of the prior) of so many times the largest datum are no sensitivities of a model.
_EXPLODED = 100.0


@dataclasses.dataclass(frozen=True)
class Directions:
    """Directions in whitened coordinates: `contraction`, shape (dim,), largest first, and `vectors`, (dim, dim), one a
    row, of length 1."""

    names: tuple[str, ...]
    contraction: np.ndarray
    vectors: np.ndarray

    def label(self, i: int) -> str:
        """A direction by its larger parts: `0.91 r0 - 0.41 initial`."""
        v = self.vectors[i]
        order = [j for j in np.argsort(-np.abs(v)) if abs(v[j]) >= _NAMED]
        v = v * np.sign(v[order[0]])
        parts = [f"{'-' if v[j] < 0 else '+'} {abs(v[j]):.2f} {self.names[j]}" for j in order]
        return " ".join(parts).removeprefix("+ ")

    def describe(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [
            {
                "direction": self.label(i),
                "contraction": float(c),
                "vector": [round(float(x), 4) for x in self.vectors[i]],
            }
            for i, c in enumerate(self.contraction)
        ]


@dataclasses.dataclass(frozen=True)
class Identifiability:
    """What the data constrain.

    `contraction`, by coordinate, and `directions`, of the posterior. `local`, by output stream: derivative of the
    expected data in each coordinate at the posterior's median, times the prior's standard deviation, shape
    (*data, dim); `predicted`, the directions of the information; both `None` where outputs have no finite derivative.
    `exploded`: the largest derivative over the largest datum, where it is so large (a hundred or more) that the
    information would be nonsense and is left out; else `None`.
    """

    names: tuple[str, ...]
    contraction: np.ndarray
    directions: Directions
    local: dict[str, np.ndarray] | None
    predicted: Directions | None
    exploded: float | None = None

    def sentence(self) -> str:
        """In words."""
        loose = [n for n, c in zip(self.names, self.contraction, strict=True) if c < 0.1]
        last = len(self.names) - 1
        said = (
            f"Most constrained: {self.directions.label(0)} (contraction {self.directions.contraction[0]:.0%}); least: "
            f"{self.directions.label(last)} ({max(self.directions.contraction[last], 0):.0%})."
        )
        if loose:
            said += f" The data say next to nothing of {', '.join(loose)} by themselves."
        if self.exploded is not None:
            said += (
                f" Derivatives of the outputs explode: up to {self.exploded:.2g} times the largest datum per standard "
                "deviation of the prior; local information is left out."
            )
        if self.local is None:
            said += " The outputs have no finite derivative, so there is no local information."
        return said

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "contraction": {n: float(c) for n, c in zip(self.names, self.contraction, strict=True)},
            "directions": self.directions.describe(),
            "exploded": self.exploded,
            "information": None if self.predicted is None else self.predicted.describe(),
        }


def identifiability(
    problem: Problem,
    posterior: Posterior,
    *,
    draws: int = 4000,
    simulations: int = 200,
    jacobians: int = 20,
    seed: int = 0,
) -> Identifiability:
    """Contraction, directions and information of a posterior.

    **Arguments:** `draws` of prior and posterior; `simulations` at the posterior's median, for the variance of data;
    `jacobians`, derivatives of so many simulations there, averaged.
    """
    prior = posterior.prior
    names = coordinate_names(prior)
    after = np.asarray(posterior.sample_coordinates(jax.random.key(seed), draws)[0], dtype=float)
    if prior.is_standard:
        mean, covariance = np.zeros(prior.dim), np.eye(prior.dim)
    else:
        before = jax.jit(jax.vmap(prior.unconstrain))(prior.sample(jax.random.key(seed + 1), draws))
        before = np.asarray(before, dtype=float)
        mean, covariance = before.mean(axis=0), np.atleast_2d(np.cov(before.T))
    contraction = 1 - after.var(axis=0) / np.diag(covariance)
    # Priors are independent between parameters: the symmetric root keeps the names of coordinates.
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    white = np.linalg.solve(root, (after - mean).T)
    spread, axes = np.linalg.eigh(np.atleast_2d(np.cov(white)))
    directions = Directions(names, 1 - spread, axes.T)
    local, information = _local(problem, posterior, np.median(after, axis=0), root, simulations, jacobians, seed)
    predicted = exploded = None
    if local is not None:
        largest = max(float(np.nanmax(np.abs(s))) for s in local.values())
        datum = max(float(np.nanmax(np.abs(x))) for _, x in _named(problem.data))
        exploded = largest / datum if largest > _EXPLODED * datum > 0 else None
    if information is not None and exploded is None:
        f, axes = np.linalg.eigh(information)
        f = np.maximum(f[::-1], 0)
        predicted = Directions(names, f / (1 + f), axes[:, ::-1].T)
    return Identifiability(names, contraction, directions, local, predicted, exploded)


def _local(
    problem: Problem,
    posterior: Posterior,
    at: np.ndarray,
    root: np.ndarray,
    simulations: int,
    jacobians: int,
    seed: int,
) -> tuple[dict[str, np.ndarray] | None, np.ndarray | None]:
    prior = posterior.prior
    if not problem.model.differentiable:
        return None, None

    def outputs(problem: Problem, z: Array, words: Array) -> Any:
        params = problem.with_values(prior.constrain(z))
        out = simulate(problem.model, params, seed=words, steps=problem.steps, inputs=problem.inputs).outputs
        return as_data(out, problem.data)

    @compiled
    def spread(problem: Problem, z: Array, words: Array, keys: Array) -> Any:
        def one(x):
            values = prior.constrain(z)
            params = problem.with_values(values)
            out = simulate(problem.model, params, seed=x[0], steps=problem.steps, inputs=problem.inputs).outputs
            return as_data(problem.loss.observe(x[1], out, values), problem.data)

        drawn = jax.lax.map(one, (words, keys), batch_size=20)
        return jax.tree.map(lambda x: jnp.nanvar(x, axis=0), drawn)

    @compiled
    def derivative(problem: Problem, z: Array, words: Array) -> Any:
        jacobian = jax.jacfwd if problem.model.in_jax else jax.jacrev  # others know reverse mode at most
        each = jax.lax.map(lambda w: jacobian(outputs, argnums=1)(problem, z, w), words, batch_size=5)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)

    z = jnp.asarray(at, dtype=float)
    words = seeds(seed, simulations, stream=_SEEDS)
    variance = spread(problem, z, words, jax.random.split(jax.random.key(seed), simulations))
    j = derivative(problem, z, seeds(seed, jacobians, stream=_SEEDS + 1))
    streams, information = {}, np.zeros((prior.dim, prior.dim))
    flat = list(zip(_named(problem.data), jax.tree.leaves(j), jax.tree.leaves(variance), strict=True))
    for (name, data), slope, v in flat:
        slope, v, seen = np.asarray(slope, dtype=float) @ root, np.asarray(v, dtype=float), np.isfinite(data)
        slope = np.where(seen[..., None], slope, np.nan)
        if not np.all(np.isfinite(slope[seen])):
            return None, None
        streams[name] = slope
        rows = slope[seen].reshape(-1, prior.dim)
        noise = v[seen].reshape(-1, 1)
        # A data point without noise at these parameters would be worth infinitely much; it is left out.
        use = noise[:, 0] > 0
        information += rows[use].T @ (rows[use] / noise[use])
    return streams, information


def _named(data: Any) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(data)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "output" for path, _ in leaves]
    return [(name, np.asarray(x)) for name, (_, x) in zip(names, leaves, strict=True)]
