"""Guarantees broken on purpose, so that a test can show that the harness would have noticed."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def mutate(name: str, module: ModuleType) -> None:
    """Break `name` in `module`, if that is where it lives."""
    {"ack too early": ack_too_early, "no fencing": no_fencing, "no fingerprint": no_fingerprint}[name](module)


def ack_too_early(module: ModuleType) -> None:
    """A group counts as trained when its step begins, not when a checkpoint that contains it is durable."""
    if module.__name__ == "mmr1.streams.groups":
        mark_applied = module.RunQueue.mark_applied

        def marked(self: Any, ids: Any) -> Any:
            result = mark_applied(self, ids)
            self._write("finish", *map(str, ids))
            return result

        module.RunQueue.mark_applied = marked


def no_fencing(module: ModuleType) -> None:
    """A server publishes what another has claimed from it meanwhile."""
    if module.__name__ == "mmr1.streams.scripts":
        source = module._source
        fence = "if holder(prompts, 'rollout', ARGV[2]) ~= ARGV[1] then return 0 end"

        def unfenced(name: str) -> str:
            text: str = source(name)
            return text.replace(fence, "") if name == "publish" else text

        module._source = unfenced


def no_fingerprint(module: ModuleType) -> None:
    """Nobody compares what has arrived with what was sent."""
    if module.__name__ == "mmr1_learner.weights":
        module._compare = lambda address, sent, received: None
