"""Gradient estimators: answers to one question, `d E[loss] / d theta`."""

from calibrant.estimators._base import AbstractEstimator as AbstractEstimator
from calibrant.estimators.pathwise import Pathwise as Pathwise
from calibrant.estimators.score_function import ScoreFunction as ScoreFunction
