"""Pathwise: the derivative of the simulation itself, discrete draws included by a sampling rule.

Kingma and Welling 2014, arXiv 1312.6114, for continuous noise, where it is unbiased; through discrete draws it is as
biased as its sampling rule.
"""

import dataclasses

import equinox as eqx
import jax

from calibrant._sampling import AbstractSamplingPlan, StraightThrough
from calibrant.estimators._base import AbstractEstimator


class Pathwise(AbstractEstimator):
    """Differentiate the simulation. `rule` says how a discrete draw is differentiated."""

    rule: AbstractSamplingPlan = eqx.field(default_factory=StraightThrough)

    unbiased = False
    separable = True

    def at(self, update):
        return dataclasses.replace(self, rule=self.rule.at(update))

    def losses(self, problem, run, values, seeds):
        trajectories = run(values, seeds, self.rule)
        return jax.vmap(problem.evaluate)(trajectories.outputs, values), trajectories
