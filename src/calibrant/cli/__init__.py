"""The command line, a thin layer over the library."""

from calibrant.cli._app import main as main
