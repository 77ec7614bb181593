"""A posterior you can trust: checks of calibration, prediction, identifiability, and of the weight of the prior."""

from calibrant.checks._calibration import CalibrationCheck as CalibrationCheck
from calibrant.checks._calibration import Verdict as Verdict
from calibrant.checks._calibration import calibration as calibration
from calibrant.checks._ranks import Tarp as Tarp
from calibrant.checks._ranks import central_coverage as central_coverage
from calibrant.checks._ranks import folded as folded
from calibrant.checks._ranks import ranks as ranks
from calibrant.checks._ranks import tarp as tarp
from calibrant.checks._uniform import Envelope as Envelope
from calibrant.checks._uniform import Uniformity as Uniformity
from calibrant.checks._uniform import envelope as envelope
from calibrant.checks._uniform import envelope_p_value as envelope_p_value
from calibrant.checks._uniform import uniformity as uniformity
from calibrant.checks._width import Detectable as Detectable
from calibrant.checks._width import Width as Width
from calibrant.checks._width import detectable as detectable
from calibrant.checks._width import width as width
