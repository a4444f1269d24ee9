"""What all adapters share: where the server is, items from a trainer's columns, and failures that stay failures.

The server is the argument `url` or MMR1_REWARD_URL. The task is the argument `task`, or else the one that the label
names (`labels.py`), or else MMR1_REWARD_TASK. MMR1_REWARD_API_KEY goes with each request; `trust.py` has the
variables for TLS. Clients are kept, one for each process or event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..api import Item, Outcome, Result, first_problem
from ..client import RewardClient
from ..labels import read_label
from ..sync_client import SyncRewardClient
from . import trust

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 120.0
_MAX_NESTING = 32
_MAX_INT_BITS = 14_000  # 4,300 decimal digits are what Python's and others' readers of JSON take


@dataclass(frozen=True)
class _Server:
    """All that makes one client another."""

    url: str
    deadline_seconds: float
    api_key: str | None
    trust: trust.Trust


_locks = [threading.Lock()]
# A client's connections hold its loop, so those of closed loops are forgotten by hand: see `score_async`.
_sync_clients: dict[tuple[int, _Server], SyncRewardClient] = {}
_async_clients: dict[tuple[asyncio.AbstractEventLoop, _Server], RewardClient] = {}

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
) -> list[Item | Result]:
    """Items named by their place. Where a label is wrong, there is a result that says so instead: one bad row of a
    dataset is no reason to end a run. Raises ValueError without a task.
    """
    sizes = [None] * len(responses) if image_sizes is None else image_sizes
    asked = enumerate(zip(responses, labels, sizes, strict=True))
    return [_make_item(target, str(place), *one) for place, one in asked]


def _make_item(target: Target, name: str, response: str, label: Any, image_size: Any) -> Item | Result:
    try:
        read = read_label(plain(label))
        if task := target.task or read.task or os.environ.get("MMR1_REWARD_TASK"):
            return Item(
                id=name,
                task=task,
                response=_encodable(response),
                solution=read.solution,
                params={**target.params, **read.params},
                image_size=read.image_size if image_size is None else plain(image_size),
            )
    except ValidationError as error:
        return _without_reward(name, first_problem(error))
    except ValueError as error:
        return _without_reward(name, str(error))
    raise ValueError("no task: set MMR1_REWARD_TASK, pass task=, or name it in the label")


def _without_reward(name: str, why: str) -> Result:
    return Result(id=name, outcome=Outcome.VERIFIER_ERROR, reward=None, detail=f"sample {name}: {why}")


def score(target: Target, items: Sequence[Item | Result]) -> list[Result]:
    """One result for each item, in order; whatever fails is a result without a reward. Results stay what they are."""
    server = _server(target)
    with _locks[0]:
        client = _sync_clients.get((os.getpid(), server))
        if client is None:
            client = SyncRewardClient(
                server.url, server.deadline_seconds, api_key=server.api_key, verify=server.trust.context()
            )
            _sync_clients[os.getpid(), server] = client
    return _told(items, client.score_in_parts(_to_send(items)))


async def score_async(target: Target, items: Sequence[Item | Result]) -> list[Result]:
    """As `score`, on the running event loop."""
    server, loop = _server(target), asyncio.get_running_loop()
    with _locks[0]:  # other threads have loops too
        client = _async_clients.get((loop, server))
        if client is None:
            for known in [one for one in _async_clients if one[0].is_closed()]:
                del _async_clients[known]
            client = RewardClient(
                server.url, server.deadline_seconds, api_key=server.api_key, verify=server.trust.context()
            )
            _async_clients[loop, server] = client
    return _told(items, await client.score_in_parts(_to_send(items)))


def _server(target: Target) -> _Server:
    # The key is never an argument: those end up in printed configurations.
    key = os.environ.get("MMR1_REWARD_API_KEY")
    key = None if key is None else key.strip()  # a secret from a file often ends with a newline; the server takes it so
    return _Server(target.url, target.deadline_seconds, key, trust.from_environment())


def _to_send(items: Sequence[Item | Result]) -> list[Item]:
    return [item for item in items if isinstance(item, Item)]


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
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def plain(value: Any, nesting: int = 0) -> Any:
    """A value as JSON knows it: mappings, sequences, arrays and numbers of numpy, OmegaConf and the like unwrapped."""
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        raise ValueError(f"cannot be sent as JSON: an integer of {value.bit_length()} bits")
    if value is None or isinstance(value, bool | int | float):
        return value
    if nesting == _MAX_NESTING:
        raise ValueError(f"nested deeper than {_MAX_NESTING}")
    if isinstance(value, Mapping):
        return {_encodable(str(key)): plain(inner, nesting + 1) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist(), nesting + 1)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain(inner, nesting + 1) for inner in value]
    raise ValueError(f"cannot be sent as JSON: a {type(value).__name__}")


def _told(items: Sequence[Item | Result], scored: Sequence[Result]) -> list[Result]:
    """All results; the first reason why there is no reward is logged, since most trainers have no place for it."""
    answers = iter(scored)
    results = [item if isinstance(item, Result) else next(answers) for item in items]
    failed = [result for result in results if result.reward is None]
    if failed:
        reason = f"{failed[0].outcome.value}: {failed[0].detail}"
        logger.warning("%d of %d samples have no reward; the first: %s", len(failed), len(results), reason)
    return results


def _encodable(text: str) -> str:
    """Halves of surrogate pairs joined where they are a pair, or else replaced: JSON files hold them, UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
