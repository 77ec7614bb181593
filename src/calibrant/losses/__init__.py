"""Losses: distances, scoring rules, likelihoods."""

from calibrant.losses._base import AbstractLoss as AbstractLoss
from calibrant.losses._base import AbstractPerSimulationLoss as AbstractPerSimulationLoss
from calibrant.losses._base import CustomLoss as CustomLoss
from calibrant.losses._base import as_loss as as_loss
from calibrant.losses._errors import LogMeanSquaredError as LogMeanSquaredError
from calibrant.losses._errors import MeanSquaredError as MeanSquaredError
from calibrant.losses._errors import SquaredErrorOfMean as SquaredErrorOfMean
from calibrant.losses._likelihoods import BinomialLogLikelihood as BinomialLogLikelihood
from calibrant.losses._likelihoods import GaussianLogLikelihood as GaussianLogLikelihood
from calibrant.losses._likelihoods import MarginalLikelihood as MarginalLikelihood
from calibrant.losses._likelihoods import NegativeBinomialLogLikelihood as NegativeBinomialLogLikelihood
from calibrant.losses._likelihoods import PoissonLogLikelihood as PoissonLogLikelihood
from calibrant.losses._likelihoods import Streams as Streams
from calibrant.losses._periods import Periods as Periods
from calibrant.losses._scores import EnergyScore as EnergyScore
from calibrant.losses._scores import KernelScore as KernelScore
from calibrant.losses._scores import MaximumMeanDiscrepancy as MaximumMeanDiscrepancy
