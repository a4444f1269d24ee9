"""What is done to a running stack, and when: a service, a signal, and the phase at which it strikes."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

AT_RANDOM = "at random"


@dataclass(frozen=True, slots=True)
class Fault:
    """`phase` is one of the agent's names, reached by whichever process gets there first, or AT_RANDOM.

    A service that is frozen goes on after `frozen_seconds`; 0 means that it is killed instead.
    """

    victim: str  # learner, rollout, engine (the process inside a rollout server that samples), reward, redis, wire
    phase: str
    frozen_seconds: float = 0.0

    @property
    def signal(self) -> int:
        if self.victim == "wire":
            return 0
        return signal.SIGSTOP if self.frozen_seconds else signal.SIGKILL

    def __str__(self) -> str:
        if self.victim == "wire":
            return "a bit changed on the wire, weights leaving"
        what = f"{self.victim} frozen for {self.frozen_seconds:g} s" if self.frozen_seconds else f"{self.victim} killed"
        return f"{what}, {self.phase}"


# Frozen for longer than a lease, a claim and a phase of a weight update last here, or shorter than all of them.
LONG, SHORT = 14.0, 2.0

# The stations of a group and of a version. Whoever gets there first strikes, itself or another.
STATIONS = (
    "prompt taken",
    "mid-generation",
    "before publish",
    "after publish",
    "mid-step",
    "mid-checkpoint",
    "between checkpoint and ack",
    "weights leaving",
    "weights arriving",
)
SERVICES = ("learner", "rollout", "reward", "redis")

FAULTS: tuple[Fault, ...] = (
    *(Fault(service, phase) for service in SERVICES for phase in (*STATIONS, AT_RANDOM)),
    *(Fault(service, AT_RANDOM, LONG) for service in SERVICES),
    Fault("engine", "mid-generation"),
    Fault("engine", "weights arriving"),
    Fault("reward", "scoring"),
    Fault("wire", "bytes leaving"),
    Fault("learner", "mid-step", LONG),
    Fault("learner", "weights leaving", LONG),
    Fault("learner", "between checkpoint and ack", SHORT),
    Fault("rollout", "prompt taken", LONG),
    Fault("rollout", "before publish", LONG),
    Fault("rollout", "weights arriving", LONG),
    Fault("rollout", "mid-generation", SHORT),
    Fault("reward", "scoring", LONG),
    Fault("redis", "before publish", SHORT),
    Fault("redis", "weights leaving", SHORT),
    Fault("redis", "mid-step", LONG),
)


# One of each service, killed where it hurts most, and one frozen past all deadlines: some minutes of a real run.
SUBSET: tuple[Fault, ...] = (
    Fault("rollout", "before publish", LONG),
    Fault("learner", "between checkpoint and ack"),
    Fault("redis", "before publish"),
    Fault("wire", "bytes leaving"),
    Fault("reward", "scoring"),
    Fault("engine", "mid-generation"),
    Fault("rollout", "weights arriving"),
)


def draw(number: int, seed: int) -> list[Fault]:
    """`number` faults: every kind once, in an order that the seed decides, then every kind again."""
    rng = random.Random(seed)
    drawn: list[Fault] = []
    while len(drawn) < number:
        drawn += rng.sample(FAULTS, len(FAULTS))
    return drawn[:number]
