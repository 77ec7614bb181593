"""Bundled models, examples of the public interface."""

from calibrant.models.boarding_school import OUTBREAK_1978 as OUTBREAK_1978
from calibrant.models.boarding_school import BoardingSchoolSIBR as BoardingSchoolSIBR
from calibrant.models.boarding_school import BoardingSchoolSIR as BoardingSchoolSIR
from calibrant.models.brock_hommes import BrockHommes as BrockHommes
from calibrant.models.brock_hommes import BrockHommesForecast as BrockHommesForecast
from calibrant.models.june import June as June
from calibrant.models.random_walk import RandomWalk as RandomWalk
from calibrant.models.regional_sir import RegionalSIR as RegionalSIR
from calibrant.models.sir import SIR as SIR
from calibrant.models.threshold_market import ThresholdMarket as ThresholdMarket
