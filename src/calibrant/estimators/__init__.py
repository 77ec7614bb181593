"""Gradient estimators: answers to one question, `d E[loss] / d theta`."""

from calibrant.estimators._base import AbstractEstimator as AbstractEstimator
from calibrant.estimators._baselines import AbstractBaseline as AbstractBaseline
from calibrant.estimators._baselines import MeanOfOthers as MeanOfOthers
from calibrant.estimators._baselines import StateRegression as StateRegression
from calibrant.estimators.branching import Branching as Branching
from calibrant.estimators.controlled_score import ControlledScore as ControlledScore
from calibrant.estimators.enumeration import Enumeration as Enumeration
from calibrant.estimators.finite_differences import FiniteDifferences as FiniteDifferences
from calibrant.estimators.muprop import MuProp as MuProp
from calibrant.estimators.pathwise import Pathwise as Pathwise
from calibrant.estimators.rebar import REBAR as REBAR
from calibrant.estimators.rebar import RELAX as RELAX
from calibrant.estimators.score_function import ScoreFunction as ScoreFunction
