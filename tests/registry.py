"""Everything there is of a kind. A new horizon, mode, rule, loss, estimator or model is tested by being listed here."""

import jax.numpy as jnp
import numpy as np
import toys

import calibrant as cal
from calibrant.networks import random_groups

HORIZONS = {
    "full": cal.FullHorizon(),
    "sliding-0": cal.SlidingHorizon(0),
    "sliding-1": cal.SlidingHorizon(1),
    "sliding-4": cal.SlidingHorizon(4),
    "block-3": cal.BlockHorizon(3),
    "geometric": cal.GeometricHorizon(0.6),
}
MODES = {
    "reverse": cal.ReverseMode(),
    "checkpointed": cal.CheckpointedReverseMode(),
    "checkpointed-4": cal.CheckpointedReverseMode(segments=4),
    "hybrid": cal.HybridMode(),
    "hybrid-chunk-2": cal.HybridMode(chunk=2),
}
RULES = {
    "straight-through": cal.StraightThrough(),
    "gumbel-straight-through": cal.GumbelSoftmax(0.5),
    "gumbel-soft": cal.GumbelSoftmax(0.5, straight_through=False),
    "hard": cal.Hard(),
}
_E = cal.estimators
#: name -> (estimator, replicates that it is tested with)
ESTIMATORS = {
    "straight-through": (_E.Pathwise(), 2),
    "gumbel": (_E.Pathwise(cal.GumbelSoftmax(0.5)), 2),
    "score-function": (_E.ScoreFunction(), 2),
    "score-function-to-go": (_E.ScoreFunction(reward_to_go=True), 4),
    "score-function-state": (_E.ScoreFunction(_E.StateRegression()), 8),
    "muprop": (_E.MuProp(), 8),
    "controlled-score": (_E.ControlledScore(), 12),
    "controlled-score-pooled": (_E.ControlledScore(pool=True), 3),
    "rebar": (_E.REBAR(), 2),
    "relax": (_E.RELAX(0.8, 0.6), 2),
    "branching": (_E.Branching(3), 2),
    "branching-linear": (_E.Branching(3, linear=True), 2),
    "finite-differences": (_E.FiniteDifferences(0.02), 2),
    "enumeration": (_E.Enumeration(), 1),
}

_inputs = np.sin(np.arange(9.0))
#: name -> (model, keyword arguments of `simulate`)
MODELS = {
    "drift": (toys.Drift(), {"steps": 9}),
    "lags": (toys.Lags(), {"inputs": _inputs}),
    "flips": (toys.Flips(), {"steps": 9}),
    "choice": (toys.Choice(), {"steps": 9}),
    "random-walk": (cal.models.RandomWalk(3), {"steps": 9}),
    "sir": (cal.models.SIR.small_world(40), {"steps": 9}),
    "sir-irregular": (cal.models.SIR(random_groups(41, 6, seed=3), dt=0.5), {"steps": 9}),
    "brock-hommes": (cal.models.BrockHommes(20), {"steps": 9}),
    "brock-hommes-mean-field": (cal.models.BrockHommes(None), {"steps": 9}),
    "brock-hommes-forecast": (
        cal.models.BrockHommesForecast(),
        {"inputs": np.asarray(cal.models.BrockHommesForecast.lagged(jnp.asarray(_inputs)))},
    ),
    "boarding-school": (cal.models.BoardingSchoolSIR(40, house_size=10), {"steps": 8}),
    "regional-sir": (cal.models.RegionalSIR(60, areas=3, steps=9, days=4), {}),
    "threshold-market": (cal.models.ThresholdMarket(50), {"steps": 9}),
    "boarding-school-in-bed": (cal.models.BoardingSchoolSIBR(40, house_size=10), {"steps": 8}),
}

_y = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 7.0])
_gaussian = cal.losses.GaussianLogLikelihood(1.5)
#: name -> loss, for data of shape (6,) and positive simulations
LOSSES = {
    "mse": cal.losses.MeanSquaredError(),
    "log-mse": cal.losses.LogMeanSquaredError(),
    "mse-of-mean": cal.losses.SquaredErrorOfMean(),
    "mmd": cal.losses.MaximumMeanDiscrepancy(_y),
    "mmd-lags": cal.losses.MaximumMeanDiscrepancy(_y, lags=2, bandwidth_factor=0.5),
    "energy": cal.losses.EnergyScore(),
    "kernel": cal.losses.KernelScore(3.0),
    "gaussian": _gaussian,
    "poisson": cal.losses.PoissonLogLikelihood(),
    "negative-binomial": cal.losses.NegativeBinomialLogLikelihood(4.0),
    "marginal": cal.losses.MarginalLikelihood(_gaussian),
    "function": cal.losses.as_loss(lambda x, y, params: jnp.mean(jnp.abs(x - y))),
}
LOSS_DATA = _y

#: name of a bundled configuration -> the steps that it simulates
CONFIGURATION_STEPS = {
    "boarding-school": 56,
    "boarding-school-in-bed": 56,
    "brock-hommes": 97,
    "june-london": 142,
    "june-town": 50,
}

FAMILIES = {
    "maf": cal.posteriors.MaskedAutoregressiveFlow(),
    "maf-spline": cal.posteriors.MaskedAutoregressiveFlow(layers=2, knots=6),
    "coupling": cal.posteriors.CouplingSplineFlow(),
    "gaussian": cal.posteriors.FullRankGaussian(),
}
