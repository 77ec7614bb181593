"""Is the flow near the posterior, and can it be corrected? Pareto-smoothed importance sampling.

Draws of the flow are weighted with `log w = log prior - loss / weight - log q` (in the unconstrained coordinates). The
largest weights are smoothed by a generalised Pareto fit, whose shape is k-hat: below 0.7 the weighted draws can stand
in for the posterior; above, the flow misses a part of it (Vehtari, Simpson, Gelman, Yao, Gabry 2024, JMLR 25(72); for
variational inference Yao, Vehtari, Simpson, Gelman 2018, arXiv 1802.02538). The smoothing is that of ArviZ.

With `MarginalLikelihood` each loss is minus the logarithm of an unbiased estimate of the likelihood, and weights that
are random and right in the mean give the exact posterior (importance sampling squared: Tran, Scharth, Pitt, Kohn 2013,
arXiv 1309.3339). Their noise is a price: k-hat grows with it. It is measured from two halves of the replicates.
"""

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from calibrant._expect import expect
from calibrant._problem import Problem
from calibrant._randomness import seeds
from calibrant.checks._refits import coordinate_names
from calibrant.losses import MarginalLikelihood
from calibrant.posteriors import Posterior

_SIMULATE = 0x49530000
GOOD = 0.7
#: Standard deviation of a log-weight from simulation noise, above which k-hat says more of the noise than of the flow.
_NOISY = 1.0


@dataclasses.dataclass(frozen=True)
class ImportanceCheck:
    """Importance weights of draws of a posterior.

    `z`, coordinates of the draws, shape (draws, dim); `weights`, smoothed, sum to 1; `k_hat`; `noise`, standard
    deviation of a log-weight from simulation noise; `size`, effective sample size; `failed`, draws that were left out.
    """

    names: tuple[str, ...]
    posterior: Posterior
    z: np.ndarray
    weights: np.ndarray
    k_hat: float
    noise: float
    failed: int

    @property
    def size(self) -> float:
        """Effective sample size, `1 / sum of squared weights`."""
        return float(1 / np.sum(self.weights**2))

    @property
    def reliable(self) -> bool:
        """Whether weighted draws can stand in for the posterior."""
        return self.k_hat <= GOOD

    @property
    def shift(self) -> np.ndarray:
        """By coordinate, how much the flow's centre is too high, in its own standard deviations."""
        mean, _ = self._moments()
        return (self.z.mean(axis=0) - mean) / self.z.std(axis=0)

    @property
    def width(self) -> np.ndarray:
        """By coordinate, the flow's standard deviation over that of the weighted draws."""
        return self.z.std(axis=0) / self._moments()[1]

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.weights @ self.z
        return mean, np.sqrt(self.weights @ (self.z - mean) ** 2)

    def resampled(self, n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
        """`n` corrected draws: name -> array of shape (n, *shape), drawn by weight (systematically)."""
        start = np.random.default_rng(seed).uniform()
        at = np.searchsorted(np.cumsum(self.weights), (start + np.arange(n)) / n)
        z = jnp.asarray(self.z[np.minimum(at, len(self.z) - 1)])
        values = jax.vmap(self.posterior.prior.constrain)(z)
        return {name: np.asarray(values[name]) for name in self.posterior.prior.names}

    def sentence(self) -> str:
        """In words."""
        said = (
            f"k-hat of the flow is {self.k_hat:.2f}, and {len(self.z)} draws are worth {self.size:.0f} of the posterior"
        )
        if self.reliable:
            worst = int(np.argmax(np.abs(self.shift)))
            off = int(np.argmax(np.abs(np.log(self.width))))
            return (
                f"{said}: weighted draws can stand in for it, to {1 / np.sqrt(self.size):.2f} standard deviations. "
                f"Against them the flow's centre is off by at most {abs(self.shift[worst]):.2f} ({self.names[worst]}), "
                f"and its width is {self.width[off]:.2f} of theirs where it differs most ({self.names[off]})."
            )
        if self.noise > _NOISY:
            return (
                f"{said}: too few to say anything, because log-weights have a standard deviation of {self.noise:.1f} "
                "from simulation noise alone; more replicates would tell."
            )
        return f"{said}: above {GOOD} weights cannot correct it; the flow misses a part of the posterior."

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        rows = zip(self.names, self.shift, self.width, strict=True)
        return {
            "k_hat": self.k_hat,
            "reliable": self.reliable,
            "effective_sample_size": self.size,
            "draws": len(self.z),
            "failed": self.failed,
            "noise_of_log_weights": self.noise,
            "parameters": {n: {"shift": float(s), "width": float(w)} for n, s, w in rows},
        }


def importance(
    problem: Problem,
    posterior: Posterior,
    *,
    weight: float = 1.0,
    draws: int = 1000,
    replicates: int = 20,
    at_once: int | None = 400,
    seed: int = 0,
) -> ImportanceCheck:
    """Weigh draws of a posterior by how it should be.

    **Arguments:** `weight`, `w` of the KL divergence; `draws`; `replicates`, simulations of each, as of the calibration
    or more; `at_once`, simulations side by side.

    **Raises:** `ValueError` for a loss that is no likelihood, and where fewer than 50 draws have a finite loss.
    """
    if not problem.loss.is_likelihood:
        raise ValueError(
            f"{type(problem.loss).__name__} is no likelihood, so a posterior has no importance weights; check it by "
            "refits alone."
        )
    half = max(1, replicates // 2)
    key = jax.random.key(seed)
    z, log_q = posterior.sample_coordinates(key, draws)
    values = jax.jit(jax.vmap(posterior.prior.constrain))(z)
    words = seeds(seed, (draws, 2 * half), stream=_SIMULATE)
    at_once = None if at_once is None or at_once >= draws * half else max(half, at_once // half * half)
    losses, finite = [], []
    for part in (words[:, :half], words[:, half:]):
        out = expect(problem, values, seeds=part, simulations_at_once=at_once)
        losses.append(np.asarray(out.losses, dtype=float))
        finite.append(np.asarray(out.finite))
    log_base = eqx.filter_jit(lambda prior, z: jax.vmap(prior.log_base)(z))(posterior.prior, z)
    if isinstance(problem.loss, MarginalLikelihood):
        together = -(np.logaddexp(-losses[0], -losses[1]) - np.log(2))
    else:
        together = (losses[0] + losses[1]) / 2
    log_w = np.asarray(log_base - log_q, dtype=float) - together / weight
    kept = finite[0] & finite[1] & np.isfinite(log_w)
    if kept.sum() < 50:
        raise ValueError(f"Only {int(kept.sum())} of {draws} draws of the posterior have a finite loss; 50 are needed.")
    noise = np.std((losses[0] - losses[1])[kept]) / 2 / weight
    smoothed, k_hat = _psis(log_w[kept])
    return ImportanceCheck(
        names=coordinate_names(posterior.prior),
        posterior=posterior,
        z=np.asarray(z, dtype=float)[kept],
        weights=smoothed,
        k_hat=k_hat,
        noise=float(noise),
        failed=int(draws - kept.sum()),
    )


def _psis(log_w: np.ndarray) -> tuple[np.ndarray, float]:
    with warnings.catch_warnings():  # ArviZ announces its refactoring on import, and warns of what k-hat says
        warnings.simplefilter("ignore")
        import arviz as az

        log_smoothed, k_hat = az.psislw(log_w - np.max(log_w))
    smoothed = np.exp(np.asarray(log_smoothed, dtype=float))
    return smoothed / smoothed.sum(), float(k_hat)
