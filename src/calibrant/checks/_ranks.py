"""Ranks of true values among posterior draws: simulation-based calibration, and expected coverage by TARP.

Both start from `n` pairs of a true value, drawn from the prior of an inference, and draws of the posterior that the
inference made of data simulated there. If the posteriors are right, true value and draws are exchangeable given the
data, so every statistic that treats them alike has a uniform rank:

- of the value of one parameter (Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv 1804.06788);
- of its distance from the middle (folded ranks), which sees a wrong spread;
- of the distance to a reference point that does not know the truth (TARP: Lemos, Coogan, Hezaveh, Perreault-Levasseur
  2023, ICML, arXiv 2302.03026, theorem 3), which looks at all parameters together.

Nothing here knows where the draws came from.
"""

import dataclasses

import numpy as np

from calibrant.checks._uniform import Uniformity, uniformity


def _checked(draws: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    draws, truths = np.asarray(draws, dtype=float), np.asarray(truths, dtype=float)
    if draws.ndim != 3 or truths.shape != (draws.shape[0], draws.shape[2]):
        raise ValueError(
            "`draws` have shape (data sets, draws, parameters) and `truths` (data sets, parameters); "
            f"got {draws.shape} and {truths.shape}."
        )
    if draws.shape[1] < 2:
        raise ValueError("Ranks need two draws of each posterior or more.")
    if not (np.all(np.isfinite(draws)) and np.all(np.isfinite(truths))):
        raise ValueError("`draws` and `truths` must be finite; leave out data sets whose posterior failed, and say so.")
    return draws, truths


def _placed(below: np.ndarray, equal: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform values from ranks: the truth falls anywhere between its neighbours, and anywhere among its equals."""
    return (below + rng.uniform(size=below.shape) * (equal + 1)) / (n + 1)


def ranks(draws: np.ndarray, truths: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Randomised ranks of true values, scaled to [0, 1]: exactly uniform if the posteriors are right.

    **Arguments:** `draws`, shape (data sets, draws, parameters); `truths`, (data sets, parameters); `seed`, of where
    between its two neighbours each truth is put, which makes the ranks continuous, and of how ties are broken.

    **Returns:** shape (data sets, parameters).

    **Raises:** `ValueError` for wrong shapes and for what is not finite.
    """
    draws, truths = _checked(draws, truths)
    below = np.sum(draws < truths[:, None], axis=1)
    equal = np.sum(draws == truths[:, None], axis=1)
    return _placed(below, equal, draws.shape[1], np.random.default_rng(seed))


def folded(u: np.ndarray) -> np.ndarray:
    """Ranks folded at the median, `|2u - 1|`: near 1 the truth is in a tail of its posterior, whichever.

    They do not change with the coordinate of a parameter.
    """
    return np.abs(2 * np.asarray(u) - 1)


@dataclasses.dataclass(frozen=True)
class Tarp:
    """Expected coverage by distances to reference points.

    `u`, name of the kind of reference -> ranks of the truth's distance, shape (data sets,); `tests`, of each.

    - `random`: at draws of the prior, as in the paper.
    - `centre`: in the middle of each posterior: wrong spread, in all parameters together.
    - `far 1`, `far 2`, ...: far away, in as many orthogonal directions as there are parameters: shifts.
    """

    u: dict[str, np.ndarray]
    tests: dict[str, Uniformity]

    @property
    def p(self) -> float:
        """p-value of all references together (Bonferroni)."""
        return min(1.0, len(self.tests) * min(t.p for t in self.tests.values()))


def tarp(draws: np.ndarray, truths: np.ndarray, references: np.ndarray, *, seed: int = 0) -> Tarp:
    """Test joint coverage.

    **Arguments:** `draws`, `truths`, as in `ranks`; `references`, shape (data sets, parameters), points that do not
    depend on the truths: draws of the prior, say. Distances are Euclidean after each data set's draws and truth,
    taken alike, were centred and whitened. `seed`, of the directions of the far references and of ties.

    **Raises:** `ValueError` for wrong shapes, for what is not finite, and for fewer than 10 draws a parameter.
    """
    draws, truths = _checked(draws, truths)
    _, m, dim = draws.shape
    references = np.asarray(references, dtype=float)
    if references.shape != truths.shape:
        raise ValueError(f"`references` have the shape of the truths, {truths.shape}, got {references.shape}.")
    if m < 10 * dim:
        raise ValueError(f"TARP needs at least 10 draws a parameter, {10 * dim} here, got {m}.")
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(dim, dim)))[0].T
    every = np.concatenate([truths[:, None], draws], axis=1)  # centre and scale see truth and draws alike
    centre = np.mean(every, axis=1)
    every = every - centre[:, None]
    covariance = np.einsum("nmi,nmj->nij", every, every) / m
    variance = np.einsum("nii->ni", covariance)
    if not np.all(variance > 0):
        raise ValueError(
            "A posterior whose draws are all the same has no coverage; leave that data set out, and say so."
        )
    jitter = 1e-9 * variance[:, :, None] * np.eye(dim)
    factor = np.linalg.cholesky(covariance + jitter)
    white = np.linalg.solve(factor, np.swapaxes(every, 1, 2))  # (data sets, parameters, 1 + draws)
    reference = np.linalg.solve(factor, (references - centre)[:, :, None])
    distances = {
        "random": np.sum((white - reference) ** 2, axis=1),
        "centre": np.sum(white**2, axis=1),
        # From far away, distance along a direction alone.
        **{f"far {i + 1}": np.einsum("nim,i->nm", white, -d) for i, d in enumerate(directions)},
    }
    u = {}
    for name, d in distances.items():
        below, equal = np.sum(d[:, 1:] < d[:, :1], axis=1), np.sum(d[:, 1:] == d[:, :1], axis=1)
        u[name] = _placed(below, equal, m, rng)
    return Tarp(u, {name: uniformity(x) for name, x in u.items()})


def central_coverage(u: np.ndarray, level: float) -> tuple[int, int]:
    """How many of the truths with ranks `u` are inside the central interval of that probability, and of how many."""
    inside = np.abs(2 * np.asarray(u) - 1) <= level
    return int(np.sum(inside)), int(inside.size)
