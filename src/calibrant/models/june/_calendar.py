"""The calendar: weekdays, policies with dates, and the arrays of inputs that a model of JUNE scans over."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from calibrant.models.june._tables import VENUES, WEEKDAY_ONLY

Date = dt.date


class DayInputs(eqx.Module):
    """What each day brings; arrays with a leading axis of days."""

    day: Float[Array, " *days"]
    weekend: Float[Array, " *days"]
    #: Factor on the contacts in each venue type, 0 where closed.
    factor: Float[Array, "*days venues"]
    #: 1 where a free contact factor applies: (days, venues, factors).
    free: Float[Array, "*days venues factors"]
    #: 1 while the symptomatic are asked to isolate.
    isolation: Float[Array, " *days"]
    #: Share of all imported infections that arrive on the day.
    imports: Float[Array, " *days"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Something that changes contacts between two dates.

    **Arguments:**

    - `start`, `end`: dates, the first and the first no longer included; `end=None` for good.
    - `venues`: names of venue types, or `("all",)`.
    - `factor`: on their contacts, 0 for closed; or the name of a free factor, estimated as an element of `log_contact`.
      Policies that overlap multiply.
    - `isolation`: the symptomatic are asked to isolate; the parameter `compliance` says how far they do.
    - `name`: for reports.

    **Raises:** `ValueError` for unknown venues, a negative factor, or dates in the wrong order.
    """

    start: Date
    end: Date | None = None
    venues: tuple[str, ...] = ()
    factor: "int | float | str" = 1.0
    isolation: bool = False
    name: str = ""

    def __post_init__(self):
        what = f"policy {self.name or self.start}"
        unknown = [v for v in self.venues if v not in (*VENUES, "all")]
        if unknown:
            raise ValueError(f"{what}: there is no venue type '{unknown[0]}'; there are {', '.join(VENUES)}, and all.")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"{what}: it ends ({self.end}) before it starts ({self.start}).")
        if not isinstance(self.factor, str) and not self.factor >= 0:
            raise ValueError(f"{what}: a factor is at least 0, got {self.factor}.")
        if not self.venues and not self.isolation:
            raise ValueError(f"{what}: it names no venues and asks nobody to isolate, so it does nothing.")


@dataclasses.dataclass(frozen=True)
class Calendar:
    """Days from `start` on, and what happens on them.

    **Arguments:** `start`, the first date; `days`; `policies`; `import_days`, over how many first days imported
    infections are spread evenly; `factors`, names of the free contact factors in the order of `log_contact`, by default
    those of the policies as they come.

    **Raises:** `ValueError` for a calendar without days, and for a policy with a factor that is not among `factors`.
    """

    start: Date
    days: int
    policies: Sequence[Policy] = ()
    import_days: int = 1
    factors: tuple[str, ...] | None = None

    def __post_init__(self):
        unknown = [f for f in self._used_factors if self.factors is not None and f not in self.factors]
        if unknown:
            known = ", ".join(self.factors or ()) or "none"
            raise ValueError(f"a policy has the free factor '{unknown[0]}', which is not among those known: {known}.")
        if self.days < 1 or not 1 <= self.import_days <= self.days:
            raise ValueError(
                f"A calendar has at least one day, and imports on 1 to all of them; got {self.days} days with imports "
                f"on {self.import_days}."
            )

    @property
    def dates(self) -> list[Date]:
        return [self.start + dt.timedelta(days=i) for i in range(self.days)]

    @property
    def free_factors(self) -> tuple[str, ...]:
        """Names of the free contact factors, in the order of `log_contact`."""
        return self._used_factors if self.factors is None else self.factors

    @property
    def _used_factors(self) -> tuple[str, ...]:
        names = [p.factor for p in self.policies if isinstance(p.factor, str)]
        return tuple(dict.fromkeys(names))

    def inputs(self) -> DayInputs:
        """The arrays a model scans over."""
        names = self.free_factors
        weekend = np.array([d.weekday() >= 5 for d in self.dates], dtype=float)
        factor = np.ones((self.days, len(VENUES)))
        factor[np.ix_(np.flatnonzero(weekend), np.array([VENUES.index(v) for v in WEEKDAY_ONLY]))] = 0
        free = np.zeros((self.days, len(VENUES), len(names)))
        isolation = np.zeros(self.days)
        for policy in self.policies:
            first = max(0, (policy.start - self.start).days)
            last = self.days if policy.end is None else max(0, (policy.end - self.start).days)
            where = range(len(VENUES)) if "all" in policy.venues else [VENUES.index(v) for v in policy.venues]
            for venue in where:
                if isinstance(policy.factor, str):
                    free[first:last, venue, names.index(policy.factor)] += 1
                else:
                    factor[first:last, venue] *= policy.factor
            if policy.isolation:
                isolation[first:last] = 1
        imports = np.zeros(self.days)
        imports[: self.import_days] = 1 / self.import_days
        arrays: dict[str, Any] = {
            "day": np.arange(1, self.days + 1),
            "weekend": weekend,
            "factor": factor,
            "free": free,
            "isolation": isolation,
            "imports": imports,
        }
        return DayInputs(**{name: jnp.asarray(x, dtype=float) for name, x in arrays.items()})
