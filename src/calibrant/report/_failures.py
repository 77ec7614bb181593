"""Where in parameter space simulations fail."""

import dataclasses

import numpy as np

from calibrant._calibration import Calibration


@dataclasses.dataclass(frozen=True)
class FailureMap:
    """Of one scalar parameter: `edges` of bins of equally many simulations, and the `share` of each that failed."""

    name: str
    edges: np.ndarray
    share: np.ndarray


def failure_maps(calibration: Calibration, bins: int = 5) -> list[FailureMap]:
    """One a scalar parameter, from all simulations of a calibration's updates; empty where nothing failed.

    The failures and successes that were kept stand for all there were, with a weight each.
    """
    if not calibration.failures:
        return []
    out = []
    survived = calibration.n_values - calibration.n_failed
    for name, failed in calibration.failures.items():
        succeeded = calibration.successes.get(name, failed[:0])
        for index in np.ndindex(failed.shape[1:]):
            x = np.concatenate([failed[:, *index], succeeded[:, *index]])
            weight = np.full(len(x), calibration.n_failed / len(failed))
            weight[len(failed) :] = survived / max(len(succeeded), 1)
            order = np.argsort(x)
            mass = np.cumsum(weight[order]) / np.sum(weight)
            at = np.searchsorted(mass, np.linspace(0, 1, bins + 1)[1:-1])
            edges = np.concatenate([[x[order[0]]], x[order[at]], [x[order[-1]]]])
            bin_of = np.searchsorted(edges[1:-1], x, side="right")
            total = np.bincount(bin_of, weight, bins)
            of_failed = np.bincount(bin_of[: len(failed)], weight[: len(failed)], bins)
            share = of_failed / np.maximum(total, 1e-300)
            out.append(FailureMap(name + "".join(f"[{i}]" for i in index), edges, share))
    return out


def failure_rows(maps: list[FailureMap]) -> list[tuple[str, str, str, str, str]]:
    """A table: parameter, where most fail, share there, where fewest fail, share there."""

    def place(m: FailureMap, i: int) -> tuple[str, str]:
        return f"{m.edges[i]:.3g} to {m.edges[i + 1]:.3g}", f"{m.share[i]:.1%}"

    return [(m.name, *place(m, int(np.argmax(m.share))), *place(m, int(np.argmin(m.share)))) for m in maps]
