"""Is it any good? Checks of what a calibration rests on."""

from calibrant.diagnostics._advice import advise as advise
from calibrant.diagnostics._advice import advised as advised
from calibrant.diagnostics._gradients import Candidate as Candidate
from calibrant.diagnostics._gradients import GradientHealth as GradientHealth
from calibrant.diagnostics._gradients import Measurement as Measurement
from calibrant.diagnostics._gradients import Moments as Moments
from calibrant.diagnostics._gradients import default_repeats as default_repeats
from calibrant.diagnostics._gradients import described as described
from calibrant.diagnostics._gradients import gradients as gradients
from calibrant.diagnostics._gradients import summary as summary
from calibrant.diagnostics._picture import gradients_figure as gradients_figure
from calibrant.diagnostics._start import StartCheck as StartCheck
from calibrant.diagnostics._start import start_check as start_check
