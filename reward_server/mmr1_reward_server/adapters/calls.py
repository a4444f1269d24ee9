"""What all adapters share: where the server is, items from a trainer's columns, and failures that stay failures.

The server is the argument `url` or MMR1_REWARD_URL. The task is the argument `task`, or else the one that the label
names (`labels.py`), or else MMR1_REWARD_TASK. MMR1_REWARD_API_KEY goes with each request. Clients are kept, one for
each process or event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from ..api import Item, Outcome, Result, first_problem
from ..client import RewardClient
from ..labels import BadLabel, read_label
from ..sync_client import SyncRewardClient

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 120.0
_ITEMS_PER_REQUEST = 256
_MAX_NESTING = 32

_locks = [threading.Lock()]
_sync_clients: dict[tuple[int, str, float], SyncRewardClient] = {}
_async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, float], RewardClient]] = (
    WeakKeyDictionary()
)

# Another thread may hold the lock at the moment of a fork, and would never let it go in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _locks.__setitem__(0, threading.Lock()))


class RewardUnavailable(Exception):
    """There is no reward for this sample, through no fault of the model. Never to be read as a zero."""


@dataclass(frozen=True)
class Target:
    """Which server, which task, and the params that go with every item (a label's own go before them)."""

    url: str
    task: str | None
    params: Mapping[str, Any]
    deadline_seconds: float


def find_target(
    url: str | None = None,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Target:
    """Raises ValueError without a URL."""
    url = url or os.environ.get("MMR1_REWARD_URL")
    if not url:
        raise ValueError("no reward server: set MMR1_REWARD_URL, for instance to http://127.0.0.1:8000, or pass url=")
    return Target(url, task, plain(params or {}), float(deadline_seconds))


def make_items(
    target: Target, responses: Sequence[str], labels: Sequence[Any], image_sizes: Sequence[Any] | None = None
) -> list[Item]:
    """Items named by their place. Raises ValueError for labels that no task could read, and without a task."""
    items = []
    sizes = [None] * len(responses) if image_sizes is None else image_sizes
    for place, (response, label, size) in enumerate(zip(responses, labels, sizes, strict=True)):
        try:
            read = read_label(plain(label))
            task = target.task or read.task or os.environ.get("MMR1_REWARD_TASK")
            if not task:
                raise ValueError("no task: set MMR1_REWARD_TASK, pass task=, or name it in the label")
            items.append(
                Item(
                    id=str(place),
                    task=task,
                    # A decoder never writes half of a surrogate pair, but a mock may, and JSON cannot carry it.
                    response=response.encode("utf-8", "replace").decode("utf-8"),
                    solution=read.solution,
                    params={**target.params, **read.params},
                    image_size=read.image_size if size is None else plain(size),
                )
            )
        except BadLabel as error:
            raise ValueError(f"sample {place}: {error}") from None
        except ValidationError as error:
            raise ValueError(f"sample {place}: {first_problem(error)}") from None
    return items


def score(target: Target, items: Sequence[Item]) -> list[Result]:
    """One result for each item, in order; whatever fails is a result without a reward."""
    key = (os.getpid(), target.url, target.deadline_seconds)
    with _locks[0]:
        client = _sync_clients.get(key)
        if client is None:
            client = _sync_clients[key] = SyncRewardClient(target.url, target.deadline_seconds, api_key=_key())
    return _told([result for part in _parts(items) for result in client.score(part)])


async def score_async(target: Target, items: Sequence[Item]) -> list[Result]:
    """As `score`, on the running event loop; parts of a large batch are asked for at the same time."""
    clients = _async_clients.setdefault(asyncio.get_running_loop(), {})
    key = (target.url, target.deadline_seconds)
    client = clients.get(key)
    if client is None:
        client = clients[key] = RewardClient(target.url, target.deadline_seconds, api_key=_key())
    parts = await asyncio.gather(*(client.score(part) for part in _parts(items)))
    return _told([result for part in parts for result in part])


def _key() -> str | None:
    # Never an argument: those end up in printed configurations.
    return os.environ.get("MMR1_REWARD_API_KEY")


def reward_of(result: Result) -> float:
    """Raises RewardUnavailable when there is none."""
    if result.reward is None:
        raise RewardUnavailable(f"{result.outcome.value}: {result.detail}")
    return result.reward


def report(result: Result, score_key: str, failed_score: float | None) -> dict[str, float]:
    """The reward under `score_key` with two flags: the same keys for every sample, as verl and its forks demand.

    Without a reward it is `failed_score`, marked by `reward_failed`; raises RewardUnavailable if that is None.
    """
    failed = result.reward is None
    reward = failed_score if failed and failed_score is not None else reward_of(result)
    return {
        score_key: float(reward),
        "reward_failed": float(failed),
        "invalid_output": float(result.outcome is Outcome.INVALID_OUTPUT),
    }


def text_of(completion: Any) -> str:
    """A completion as a text: it is one, or a list of messages whose contents are texts or lists of parts."""
    if isinstance(completion, str):
        return completion
    messages = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return "".join(_content_text(message.get("content")) for message in messages)


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content)


def plain(value: Any, nesting: int = 0) -> Any:
    """A value as JSON knows it: mappings, sequences, arrays and numbers of numpy, OmegaConf and the like unwrapped."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if nesting == _MAX_NESTING:
        raise ValueError(f"nested deeper than {_MAX_NESTING}")
    if isinstance(value, Mapping):
        return {str(key): plain(inner, nesting + 1) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist(), nesting + 1)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain(inner, nesting + 1) for inner in value]
    raise ValueError(f"cannot be sent as JSON: a {type(value).__name__}")


def _told(results: list[Result]) -> list[Result]:
    """The same results; the first reason why there is no reward is logged, since most trainers have no place for it."""
    failed = [result for result in results if result.reward is None]
    if failed:
        reason = f"{failed[0].outcome.value}: {failed[0].detail}"
        logger.warning("%d of %d samples have no reward; the first: %s", len(failed), len(results), reason)
    return results


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[begin : begin + _ITEMS_PER_REQUEST] for begin in range(0, len(items), _ITEMS_PER_REQUEST)]
