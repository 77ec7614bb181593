"""The interface of inference methods: `init`, `step`, `evaluate`, `terminate`, all of them public.

`calibrant.calibrate` is the loop over these; anybody can write another.
"""

import abc
import enum
import math
from typing import TYPE_CHECKING, Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant.inference._planner import Plan
from calibrant.posteriors import Posterior

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar


class Result(enum.Enum):
    """How a calibration ended."""

    CONVERGED = "converged"
    MAX_UPDATES = "max updates"
    INTERRUPTED = "interrupted"
    TOO_MANY_FAILURES = "too many failures"
    NON_FINITE = "non-finite"

    @property
    def successful(self) -> bool:
        """Whether the posterior is what was asked for."""
        return self in (Result.CONVERGED, Result.MAX_UPDATES)


class UpdateRecord(eqx.Module):
    """What one update saw. Arrays gain a leading axis when many updates are recorded together."""

    loss: Float[Array, " *updates"]
    kl: Float[Array, " *updates"]
    objective: Float[Array, " *updates"]
    gradient_norm: Float[Array, " *updates"]
    #: Norm of the mean gradient over simulations, relative to the standard error of that mean.
    signal_to_noise: Float[Array, " *updates"]
    coordinates: Float[Array, "*updates simulations dim"]
    finite: Bool[Array, "*updates simulations"]


class State(eqx.Module):
    """The state of an iterative method between updates: all that is needed to go on."""

    posterior: Posterior
    optimiser: PyTree[Array]
    #: The gradient estimator, with what of it is trained.
    estimator: PyTree
    estimator_optimiser: PyTree[Array]
    update: Int[Array, ""]
    seed: UInt32[Array, "2"]
    #: What simulations that are not finite count as, with what of it is learnt.
    failures: PyTree = None


class Evaluation(eqx.Module):
    """The objective on a set of draws of flow and simulation noise, with its standard error."""

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    objective: Float[Array, ""]
    standard_error: Float[Array, ""]
    #: Simulations that were not finite, and those of them that count for nothing; by default all.
    failed: Int[Array, ""]
    left_out: Int[Array, ""] | None = None


def best_evaluation(history: list[dict[str, Any]]) -> int | None:
    """Index of the best evaluation: fewest simulations left out first, so that a flow does not win by those it loses.

    `None` if the objective was never finite.
    """
    finite = [i for i, row in enumerate(history) if math.isfinite(row["objective"])]
    return min(finite, key=lambda i: (history[i]["left_out"], history[i]["objective"]), default=None)


class AbstractMethod(eqx.Module):
    """An iterative way to find a posterior."""

    max_updates: AbstractVar[int]
    evaluate_every: AbstractVar[int]
    max_failed_fraction: AbstractVar[float]

    @property
    def allowed_failures(self) -> float:
        """The fraction of simulations that may fail between two evaluations."""
        return self.max_failed_fraction

    @abc.abstractmethod
    def runs_an_update(self, problem: Problem, dim: int) -> int:
        """Simulations that an update takes with `dim` coordinates."""

    @abc.abstractmethod
    def check(self, problem: Problem, prior: Prior) -> None:
        """Refuse, with a `ValueError`, what cannot work."""

    def planned(self, problem: Problem, prior: Prior) -> "tuple[AbstractMethod, Plan | None]":
        """The method with what was left to a planner settled, and the plan, if anything was."""
        del problem, prior
        return self, None

    def settled(self, plan: "dict[str, Any] | None") -> "AbstractMethod":
        """The method as a plan of an earlier process (`Plan.describe`) left it: a resumed run does not plan again."""
        del plan
        return self

    @abc.abstractmethod
    def init(self, problem: Problem, prior: Prior, seed: int, start: Posterior | None = None) -> State:
        """The state before the first update: at (or near) the prior, or at another posterior of the same kind.

        **Raises:** `ValueError` if `start` has other parameters, other priors, or is of another family.
        """

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, updates: int) -> tuple[State, UpdateRecord]:
        """So many updates, in one compiled program."""

    @abc.abstractmethod
    def evaluate(self, problem: Problem, state: State, stream: int) -> Evaluation:
        """The objective on the fixed set of draws number `stream`."""

    @abc.abstractmethod
    def terminate(self, history: list[dict[str, Any]]) -> Result | None:
        """Whether to stop, given the evaluations so far (dictionaries with `update` and `objective`)."""
