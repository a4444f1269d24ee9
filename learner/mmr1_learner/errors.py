"""What ends a learner, beside configuration errors. Light: importing it imports no engine."""

from __future__ import annotations


class StopRequestedError(Exception):
    """SIGTERM or Ctrl-C while waiting for something: go now, the newest checkpoint holds what is durable."""


class NonFiniteLossError(Exception):
    """The loss or the gradient is NaN or infinite. Nothing of the step is kept: no version, no checkpoint."""


class OvertakenError(Exception):
    """A checkpoint came while this learner was loading an older one. Started again, it goes on from the newer."""
