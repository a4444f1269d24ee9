"""What can be refused or fail here, and so needs a name. Knows nothing of gRPC status codes; `servicer.py` does."""

from __future__ import annotations


class NotServingError(Exception):
    """This server may not sample now. The message says why."""


class VerbRefusedError(Exception):
    """A weight verb out of order, of an older learner, or of another run. Nothing has changed."""


class DeadlinePassedError(Exception):
    """What ran did not end in time. Nothing has changed."""


class PromptError(Exception):
    """This prompt can never be sampled: it is too long, or the engine cannot parse it."""


class EngineDiedError(Exception):
    """The engine's processes are gone. Only a new server process can help."""
