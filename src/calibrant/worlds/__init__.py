"""Synthetic populations."""

from calibrant.worlds._atlas import read_atlas as read_atlas
from calibrant.worlds._build import MAX_PEOPLE as MAX_PEOPLE
from calibrant.worlds._build import Areas as Areas
from calibrant.worlds._build import build_world as build_world
from calibrant.worlds._build import synthetic_areas as synthetic_areas
from calibrant.worlds._info import figure as figure
from calibrant.worlds._info import summary as summary
from calibrant.worlds._june_file import import_june as import_june
from calibrant.worlds._population import Balance as Balance
from calibrant.worlds._population import Population as Population
from calibrant.worlds._population import is_laid_out as is_laid_out
from calibrant.worlds._world import ACTIVITIES as ACTIVITIES
from calibrant.worlds._world import RESIDENCES as RESIDENCES
from calibrant.worlds._world import World as World
from calibrant.worlds._world import WorldError as WorldError
from calibrant.worlds._world import distances_km as distances_km
from calibrant.worlds._world import nearest_areas as nearest_areas
