"""The states of a server and the phases of an update. What leads from one to the next is `weights.py`'s part."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What this server can do. Values are what leases and logs show."""

    STARTING = "starting"
    ACCEPTS_WEIGHTS = "accepts_weights"
    UPDATING = "updating"
    PAUSED = "paused"
    SERVES = "serves"
    BROKEN = "broken"
    DRAINING = "draining"


class Phase(Enum):
    """How far the update under way has come."""

    NONE = "no update"
    STARTED = "StartWeightUpdate"
    RECEIVED = "UpdateWeights"
    FINISHED = "FinishWeightUpdate"


# States in which every verb is out of order, with the reason.
CLOSED = {State.STARTING: "the engine is still loading", State.DRAINING: "this server is shutting down"}
