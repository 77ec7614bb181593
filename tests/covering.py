"""Products of cases: a covering set of them on every change, all of them in the long run."""

import itertools
from collections.abc import Callable, Iterable

import pytest


def product(*axes: Iterable[str], soon: Callable[..., bool]) -> list:
    """Every combination of names, one from each axis; those that are not `soon` are marked slow."""
    return [
        pytest.param(*case, marks=() if soon(*case) else pytest.mark.slow, id="-".join(case))
        for case in itertools.product(*axes)
    ]
