"""Observations: series with dates."""

from calibrant.data._series import DataError as DataError
from calibrant.data._series import read_series as read_series
