"""Reports: figures and a self-contained page about a calibration."""

from calibrant.report._page import write_report as write_report
from calibrant.report._predictive import predictive as predictive
