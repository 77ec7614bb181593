"""Networks of agents."""

from calibrant.networks._incidence import Incidence as Incidence
from calibrant.networks._random import random_groups as random_groups
from calibrant.networks._rows import Venues as Venues
from calibrant.networks._rows import exact_sum_rows as exact_sum_rows
