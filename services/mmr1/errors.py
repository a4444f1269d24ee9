"""Errors a person can act on. This file knows nothing of where they are raised."""

from __future__ import annotations

CONFIGURATION_ERROR = 2  # the exit code of every ConfigurationError, and of nothing else


class ConfigurationError(Exception):
    """Something the user must change. One line that names the thing and the remedy; the process exits with code 2."""


class AwayError(Exception):
    """Something does not answer, and may do so later. One line; the process exits with code 1: whoever watches over it
    starts it again."""


class StaleWriterError(Exception):
    """This learner has been superseded: a newer incarnation exists, so it may write nothing."""


class WeightUpdateError(Exception):
    """A weight update did not complete or could not be proved."""
