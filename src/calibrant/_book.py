"""`Book`: the records of a run's updates, in memory that does not grow with their number."""

from typing import Any

import numpy as np

from calibrant.inference import UpdateRecord

#: Of every update, a number each, besides what a method has in `extra`.
SCALARS = ("loss", "kl", "objective", "gradient_norm", "signal_to_noise", "failed")
_KEPT_FAILURES = 10_000
_KEPT_SUCCESSES = 4_096


class Book:
    """Scalars of all updates; coordinates at which simulations were not finite, up to 10,000, and a regular sample,
    up to 4,096, of those at which they were.

    **Arguments:** `max_updates`; `dim`, of the coordinates.
    """

    def __init__(self, max_updates: int, dim: int):
        self._max_updates = max_updates
        self._scalars = {name: np.full(max_updates, np.nan) for name in SCALARS}
        self._failures, self._successes = np.zeros((0, dim)), np.zeros((0, dim))
        #: Updates, simulations of parameter values, those that failed, those that did not.
        self.updates, self.seen, self.failed, self._survived = 0, 0, 0, 0
        #: Of the successes every so manieth is kept.
        self._stride = 1

    def add(self, record: UpdateRecord) -> None:
        """The records of some updates, leading axis."""
        finite = np.asarray(record.finite)
        rows = slice(self.updates, self.updates + len(finite))
        failed = np.sum(~finite, axis=1)
        told = {name: getattr(record, name) for name in SCALARS if name != "failed"} | {"failed": failed}
        for name, x in (told | record.extra).items():
            self._scalars.setdefault(name, np.full(self._max_updates, np.nan))[rows] = x
        self.updates += len(finite)
        self.seen += finite.size
        self.failed += int(np.sum(failed))
        z, ok = np.asarray(record.coordinates).reshape(finite.size, -1), finite.ravel()
        self._failures = np.concatenate([self._failures, z[~ok]])[:_KEPT_FAILURES]
        self._sample(z[ok])

    def _sample(self, z: np.ndarray) -> None:
        number = self._survived + np.arange(len(z))
        self._survived += len(z)
        self._successes = np.concatenate([self._successes, z[number % self._stride == 0]])
        while len(self._successes) > _KEPT_SUCCESSES:
            self._successes, self._stride = self._successes[::2], 2 * self._stride

    def scalars(self, since: int = 0) -> dict[str, np.ndarray]:
        """Name -> numbers of the updates after `since`, float64; `failed` counts simulations."""
        return {name: x[since : self.updates].copy() for name, x in self._scalars.items()}

    def failed_share(self, since: int) -> np.ndarray:
        """Of each update after `since`, the share of its simulations that were not finite."""
        each = self.seen / max(self.updates, 1)
        return self._scalars["failed"][since : self.updates] / max(each, 1)

    @property
    def failures(self) -> np.ndarray:
        """Coordinates at which simulations were not finite, shape (n, dim)."""
        return self._failures

    @property
    def successes(self) -> np.ndarray:
        """Coordinates, a sample of those at which they were, shape (n, dim)."""
        return self._successes

    def arrays(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        counts = np.array([self.updates, self.seen, self.failed, self._survived, self._stride])
        kept = {"failures": self._failures, "successes": self._successes, "counts": counts}
        return {**self.scalars(), **{f"kept_{name}": x for name, x in kept.items()}}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Back to what `arrays` gave."""
        counts = [int(x) for x in arrays["kept_counts"]]
        self.updates, self.seen, self.failed, self._survived, self._stride = counts
        self._failures, self._successes = arrays["kept_failures"], arrays["kept_successes"]
        for name, x in arrays.items():
            if not name.startswith("kept_"):
                self._scalars.setdefault(name, np.full(self._max_updates, np.nan))[: self.updates] = x
