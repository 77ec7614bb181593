"""JUNE: an epidemic in a city."""

from calibrant.models.june._calendar import Calendar as Calendar
from calibrant.models.june._calendar import DayInputs as DayInputs
from calibrant.models.june._calendar import Policy as Policy
from calibrant.models.june._june import June as June
from calibrant.models.june._june import JuneParams as JuneParams
from calibrant.models.june._options import june_from_options as june_from_options
from calibrant.models.june._tables import AGE_BANDS as AGE_BANDS
from calibrant.models.june._tables import LEISURE as LEISURE
from calibrant.models.june._tables import VENUES as VENUES
