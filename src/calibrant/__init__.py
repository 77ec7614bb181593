"""Calibrant: gradient-based Bayesian calibration of agent-based models."""

from importlib.metadata import version as _version

from calibrant import diagnostics as diagnostics
from calibrant import estimators as estimators
from calibrant import inference as inference
from calibrant import losses as losses
from calibrant import models as models
from calibrant import networks as networks
from calibrant import posteriors as posteriors
from calibrant import worlds as worlds
from calibrant._autodiff import AbstractMode as AbstractMode
from calibrant._autodiff import CheckpointedReverseMode as CheckpointedReverseMode
from calibrant._autodiff import HybridMode as HybridMode
from calibrant._autodiff import ReverseMode as ReverseMode
from calibrant._calibrate import CalibrationError as CalibrationError
from calibrant._calibrate import calibrate as calibrate
from calibrant._calibration import Calibration as Calibration
from calibrant._expect import Expectation as Expectation
from calibrant._expect import expect as expect
from calibrant._horizon import AbstractHorizon as AbstractHorizon
from calibrant._horizon import BlockHorizon as BlockHorizon
from calibrant._horizon import FullHorizon as FullHorizon
from calibrant._horizon import GeometricHorizon as GeometricHorizon
from calibrant._horizon import SlidingHorizon as SlidingHorizon
from calibrant._model import AbstractModel as AbstractModel
from calibrant._model import ParameterInfo as ParameterInfo
from calibrant._model import Params as Params
from calibrant._model import parameter as parameter
from calibrant._prior import Prior as Prior
from calibrant._problem import Problem as Problem
from calibrant._progress import AbstractProgress as AbstractProgress
from calibrant._randomness import Randomness as Randomness
from calibrant._randomness import seeds as seeds
from calibrant._recording import AbstractRecorder as AbstractRecorder
from calibrant._recording import LogProbability as LogProbability
from calibrant._sampling import AbstractSamplingPlan as AbstractSamplingPlan
from calibrant._sampling import AbstractSamplingRule as AbstractSamplingRule
from calibrant._sampling import GumbelSoftmax as GumbelSoftmax
from calibrant._sampling import Hard as Hard
from calibrant._sampling import StraightThrough as StraightThrough
from calibrant._simulate import Trajectory as Trajectory
from calibrant._simulate import simulate as simulate
from calibrant.estimators import FiniteDifferences as FiniteDifferences
from calibrant.inference import GVI as GVI
from calibrant.inference import MALA as MALA
from calibrant.inference import NUTS as NUTS
from calibrant.inference import SMCABC as SMCABC
from calibrant.inference import AutoMode as AutoMode
from calibrant.inference import FlowScore as FlowScore
from calibrant.inference import Point as Point
from calibrant.inference import Result as Result
from calibrant.networks import Incidence as Incidence
from calibrant.posteriors import Posterior as Posterior

__version__ = _version("calibrant")
