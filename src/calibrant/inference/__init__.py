"""Inference methods behind one interface."""

from calibrant.inference._base import AbstractMethod as AbstractMethod
from calibrant.inference._base import Evaluation as Evaluation
from calibrant.inference._base import Result as Result
from calibrant.inference._base import State as State
from calibrant.inference._base import UpdateRecord as UpdateRecord
from calibrant.inference._base import best_evaluation as best_evaluation
from calibrant.inference._black_box import FlowScore as FlowScore
from calibrant.inference._corrected import Corrected as Corrected
from calibrant.inference._failures import AbstractFailures as AbstractFailures
from calibrant.inference._failures import LearnProbability as LearnProbability
from calibrant.inference._failures import LeaveOut as LeaveOut
from calibrant.inference._failures import Penalise as Penalise
from calibrant.inference._gvi import GVI as GVI
from calibrant.inference._gvi import default_optimiser as default_optimiser
from calibrant.inference._mala import MALA as MALA
from calibrant.inference._mesh import auto_devices as auto_devices
from calibrant.inference._nuts import NUTS as NUTS
from calibrant.inference._planner import AutoMode as AutoMode
from calibrant.inference._planner import Plan as Plan
from calibrant.inference._point import Point as Point
from calibrant.inference._smc_abc import SMCABC as SMCABC
from calibrant.inference._watch import Signature as Signature
