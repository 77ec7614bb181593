"""Observations: series with dates."""

from calibrant.data._series import DataError as DataError
from calibrant.data._series import read_series as read_series
from calibrant.data._series import read_shares as read_shares
