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
from calibrant.inference._signal import RunningSignal
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
    BUDGET_SPENT = "budget spent"

    @property
    def successful(self) -> bool:
        """Whether the posterior is what was asked for."""
        return self in (Result.CONVERGED, Result.MAX_UPDATES, Result.BUDGET_SPENT)


class UpdateRecord(eqx.Module):
    """What one update saw. Arrays gain a leading axis when many updates are recorded together.

    What a method does not have is NaN. `extra` is what it has besides, by name; two names mean the same in all:
    `simulations`, where their number is not `runs_an_update`, and `gradients`, how many of them were differentiated.
    """

    loss: Float[Array, " *updates"]
    kl: Float[Array, " *updates"]
    objective: Float[Array, " *updates"]
    gradient_norm: Float[Array, " *updates"]
    #: Norm of the mean gradient over simulations, relative to the standard error of that mean; with one simulation an
    #: update, over those of recent updates.
    signal_to_noise: Float[Array, " *updates"]
    coordinates: Float[Array, "*updates simulations dim"]
    finite: Bool[Array, "*updates simulations"]
    extra: dict[str, Array] = eqx.field(default_factory=dict)


class State(eqx.Module):
    """The state of an iterative method between updates: all that is needed to go on."""

    posterior: Posterior
    #: What the method keeps for itself: of an optimiser, of chains, of particles.
    optimiser: PyTree[Array]
    #: The gradient estimator, with what of it is trained.
    estimator: PyTree
    estimator_optimiser: PyTree[Array]
    update: Int[Array, ""]
    seed: UInt32[Array, "2"]
    #: What simulations that are not finite count as, with what of it is learnt.
    failures: PyTree = None
    #: Of gradients so far, where an update has one.
    signal: RunningSignal | None = None


class Evaluation(eqx.Module):
    """The objective on a set of draws of flow and simulation noise, with its standard error.

    `kl` and `objective` are NaN for posteriors without a density. `extra`: what else there is to watch, by name.
    """

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    objective: Float[Array, ""]
    standard_error: Float[Array, ""]
    #: Simulations that were not finite; `left_out` are those of them that count for nothing, by default all.
    failed: Int[Array, ""]
    extra: dict[str, Array] = eqx.field(default_factory=dict)
    left_out: Int[Array, ""] | None = None


def best_evaluation(history: list[dict[str, Any]]) -> int | None:
    """Index of the best evaluation: fewest simulations left out first, so that a flow does not win by those it loses.

    `None` if the objective was never finite.
    """
    finite = [i for i, row in enumerate(history) if math.isfinite(row["objective"])]
    return min(finite, key=lambda i: (_left_out(history[i]), history[i]["objective"]), default=None)


def _left_out(row: dict[str, Any]) -> float:
    return float(row.get("left_out", row["failed"]))


def planned_updates(most: int, evaluations: int) -> tuple[int, int]:
    """How many updates, `most` or a little fewer, and how many between evaluations, so that all blocks of them, and
    the pieces that they are made in, are of one length and compiled once.
    """
    every = max(1, most // evaluations)
    every -= every % 10 if every >= 10 else 0
    return most - most % every, every


def require_same_prior(start: Posterior, prior: Prior) -> None:
    """Refuse, with a `ValueError`, to start at a posterior whose coordinates mean something else."""
    if start.prior.names != prior.names:
        raise ValueError(
            f"The start has the parameters {', '.join(start.prior.names)}, and here there are {', '.join(prior.names)}."
        )
    if not eqx.tree_equal(start.prior, prior):
        raise ValueError("The start has other priors than this calibration; its coordinates mean something else.")


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
    def with_budget(self, problem: Problem, prior: Prior, simulations: int) -> "AbstractMethod":
        """The method as it is to be when it may take so many simulations, evaluations that it chooses by included.

        **Raises:** `ValueError` if they are too few for it.
        """

    @property
    def runs_an_evaluation(self) -> int:
        """Simulations of an evaluation by which the method chooses among its states; 0 where it does not."""
        return 0

    def best(self, history: list[dict[str, Any]]) -> int | None:
        """Index of the evaluation whose state is the result: the last, unless a method chooses by evaluations."""
        return len(history) - 1 if history else None

    def explain(self, result: Result) -> str | None:
        """Why it ended so, in a sentence, where it is another reason than usual."""
        del result
        return None

    def diagnose(self, state: State) -> dict[str, Any]:
        """What is to be known of the result besides, for the record: numbers, lists and texts by name."""
        del state
        return {}

    def warn(self, diagnostics: dict[str, Any]) -> dict[str, str]:
        """Of what `diagnose` gave: signs that the result is not to be relied on, by name, with what to try."""
        del diagnostics
        return {}

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
