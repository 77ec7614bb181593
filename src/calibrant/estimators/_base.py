"""The interface of gradient estimators."""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from calibrant._problem import Problem
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan
from calibrant._simulate import Trajectory

if TYPE_CHECKING:  # a spelling that type checkers do not take for fields
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

Values = Mapping[str, Array]


@runtime_checkable
class Run(Protocol):
    """How an estimator simulates: trajectories of shape (batch, replicates, ...), in the mode and horizon asked for.

    With `each` every array in `rule` and `recorder` has leading axes (batch, replicates), one a simulation.
    """

    def __call__(
        self,
        values: Values,
        seeds: Array,
        rule: AbstractSamplingPlan,
        recorder: AbstractRecorder | None = None,
        *,
        each: bool = False,
    ) -> Trajectory: ...

    def of(self, problem: Problem) -> "Run":
        """The same for another problem."""
        ...

    def map(self, fn: Callable, *arguments: Any) -> Any:
        """`fn` of one simulation, over arguments with leading axes (batch, replicates), as many at once as asked."""
        ...


class AbstractEstimator(eqx.Module):
    """An estimate of `d E[loss] / d theta`: how many coupled simulations, and how they are combined.

    It is written as losses whose ordinary derivative *is* the estimate, so everything that differentiates a loss
    differentiates it.
    """

    #: Whether its expectation is the derivative of the expected loss, for hard draws and under the full horizon.
    unbiased: AbstractClassVar[bool]
    #: Whether the estimate at one value of the parameters is independent of the others in the batch.
    separable: AbstractClassVar[bool]

    @abc.abstractmethod
    def losses(
        self, problem: Problem, run: Run, values: Values, seeds: UInt32[Array, "batch replicates 2"]
    ) -> tuple[Float[Array, " batch"], Trajectory]:
        """The loss at each of a batch of values, differentiable in `values`, and the trajectories behind it."""

    def runs(self, problem: Problem, dim: int) -> int:
        """Simulations that it takes for each value and replicate, to differentiate in `dim` numbers."""
        del problem, dim
        return 1

    def prepare(self, problem: Problem, key: PRNGKeyArray) -> "AbstractEstimator":
        """The estimator with what depends on the problem filled in, before the first update."""
        del problem, key
        return self

    def at(self, update: Int[Array, ""]) -> "AbstractEstimator":
        """The estimator of one update of a calibration, where it follows a schedule."""
        del update
        return self

    def check(self, problem: Problem, batch: int, replicates: int) -> None:
        """Refuse, with a `ValueError`, what this estimator cannot do."""
        if replicates < problem.loss.min_replicates:
            raise ValueError(
                f"{type(problem.loss).__name__} needs at least {problem.loss.min_replicates} replicates "
                f"of each parameter value, got {replicates}; set `replicates`."
            )
        del batch


def check_per_simulation(problem: Problem, estimator: AbstractEstimator, what: str = "") -> None:
    """Refuse, with a `ValueError`, a loss of an ensemble."""
    if not problem.loss.per_simulation:
        raise ValueError(
            f"{type(estimator).__name__} {what}is for losses of one simulation at a time, and "
            f"{type(problem.loss).__name__} is of an ensemble; use ScoreFunction()."
        )
