"""Shows the rows of a run to its judges before it starts: one that no answer to it can be scored by is named then.

A judge is told a row's solution with an empty response, and the size of its image where that is known: a training set's
images are not opened for this. Which judges a training row has follows from the run's rewards, so that a reward of the
user's own is never held to another task's form.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from mmr1.config import RunConfig
from mmr1.config.objective import OWN_TASK
from mmr1.dataset import BadRow, stop_at_first
from mmr1.errors import ConfigurationError
from mmr1.evaluation import Judge, metrics_of
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.reading.problems import Problems
from mmr1.records import Problem, RewardSpec
from mmr1.reward_access import reward_client
from mmr1.reward_program import OwnJudge
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.client import RewardClient

_ROWS_AT_ONCE = 1024  # two processes take turns
_ITEMS_PER_REQUEST = 256
_LOOKS = 100  # at images that are not opened otherwise, to see whether a judge only lacks the size

Size = tuple[int, int]
_T = TypeVar("_T")


class RowJudge(Protocol):
    """Knows which items can never be scored."""

    def refusals(self, items: Sequence[dict[str, Any]]) -> list[str | None]:
        """For each item None, or why no response to it can be scored."""


class ServerJudge:
    """A reward server that runs. What it cannot score is held against the program of this environment.

    It does not say whether a row or its own scorer is at fault, which at an empty response a user's own may be: only
    what the program here refuses in the same words is the row's.

    Args:
        client: makes one for each event loop.
    """

    def __init__(self, client: Callable[[], RewardClient], own: RowJudge) -> None:
        self._client = client
        self._own = own

    def refusals(self, items: Sequence[dict[str, Any]]) -> list[str | None]:
        """Raises RewardServerError: the server does not answer; ConfigurationError: as OwnJudge."""
        said = asyncio.run(self._failures(items))
        failed = [place for place, detail in enumerate(said) if detail is not None]
        found: list[str | None] = [None] * len(items)
        if failed:
            own = self._own.refusals([items[place] for place in failed])
            for place, refusal in zip(failed, own, strict=True):
                found[place] = refusal if _alike(said[place], refusal) else None
        return found

    async def _failures(self, items: Sequence[dict[str, Any]]) -> list[str | None]:
        results: list[Result] = []
        async with self._client() as client:
            for start in range(0, len(items), _ITEMS_PER_REQUEST):
                part = [Item.model_validate(item) for item in items[start : start + _ITEMS_PER_REQUEST]]
                results += await client.score_or_raise(part)
        return [result.detail if result.outcome is Outcome.VERIFIER_ERROR else None for result in results]


def _alike(said: str | None, refusal: str | None) -> bool:
    """Two servers that both lack a task name different ones that they have."""
    return said == refusal or (_is_unknown(said) and _is_unknown(refusal))


def _is_unknown(refusal: str | None) -> bool:
    return refusal is not None and refusal.startswith("no task ")


def check_own_rows(config: RunConfig, problems: Problems, held_out: Problems) -> None:
    """All rows, by the program that is about to serve.

    Raises:
        ConfigurationError: rows cannot be scored; the first is named.
    """
    with OwnJudge() as judge:
        _check_trained(config, problems, range(len(problems)), judge)
        _check_held_out(config, held_out, judge)


def check_rows_of_server(config: RunConfig, problems: Problems, held_out: Problems) -> None:
    """As many training rows as have their images checked, and all held-out ones, by the reward server that runs.

    Raises:
        ConfigurationError: rows cannot be scored.
        RewardServerError: it does not answer. A restart may mend it.
    """
    client = partial(reward_client, config, config.reward_deadline_seconds)
    with OwnJudge() as own:
        _check_trained(config, problems, problems.spread(config.image_checks), ServerJudge(client, own))
    if held_out:
        asyncio.run(_ask_of_held_out(config, held_out))


async def _ask_of_held_out(config: RunConfig, held_out: Problems) -> None:
    async with reward_client(config, config.reward_deadline_seconds) as client:
        await Judge(client, config.eval_file, held_out).check_rows(sizes_of(config, held_out))


def sizes_of(config: RunConfig, problems: Iterable[Problem]) -> list[Size | None]:
    """Of the first image of each, from its header; None where the task's judge does not look at it.

    Raises:
        ConfigurationError: an image is gone.
        UnreachableImageError: where images are kept does not answer.
    """
    store = ImageStore(config.resolved_image_root)
    try:
        return [
            store.size(problem.images[0]) if problem.images and metrics_of(problem.task).takes_size else None
            for problem in problems
        ]
    except UnreachableImageError:
        raise
    except ImageError as error:
        raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None


def _check_trained(config: RunConfig, problems: Problems, indices: Sequence[int], judge: RowJudge) -> None:
    trained = _Trained(config, judge)

    def rows() -> Iterator[tuple[int, Problem, Size | None]]:
        for index, problem in _at(problems, indices):
            yield index, problem, problems.sizes.of(problem.position)

    def bad_rows() -> Iterator[BadRow]:
        for some in _in_parts(rows()):
            for (index, *_), refusal in zip(some, trained.refusals(some), strict=True):
                if refusal is not None:
                    yield problems.bad_row(index, said_of(refusal, config.answer_key))

    stop_at_first(config.train_file, bad_rows(), _options(config))


def _check_held_out(config: RunConfig, held_out: Problems, judge: RowJudge) -> None:
    """Each by its own task, as its metrics ask."""
    path = config.eval_file
    if path is None:
        return

    def bad_rows() -> Iterator[BadRow]:
        for some in _in_parts(enumerate(held_out)):
            sizes = sizes_of(config, [problem for _, problem in some])
            items = [
                item_of(problem.task, problem.solution, metrics_of(problem.task).params, size)
                for (_, problem), size in zip(some, sizes, strict=True)
            ]
            for (index, _), refusal in zip(some, judge.refusals(items), strict=True):
                if refusal is not None:
                    yield held_out.bad_row(index, said_of(refusal, config.answer_key))

    stop_at_first(path, bad_rows())


class _Trained:
    """Training rows as the run's rewards judge them."""

    def __init__(self, config: RunConfig, judge: RowJudge) -> None:
        self._config = config
        self._judge = judge
        self._store = ImageStore(config.resolved_image_root)
        self._looks = _LOOKS
        self._known: dict[str, tuple[RewardSpec, ...]] = {}  # of each task
        self._need_sizes: set[str] = set()  # rewards that can say nothing of a row without its image's size

    def refusals(self, rows: Sequence[tuple[int, Problem, Size | None]]) -> list[str | None]:
        """For each row what the first reward that cannot score it says."""
        asked = [
            (place, problem, spec, size)
            for place, (_, problem, size) in enumerate(rows)
            for spec in self._specs(problem.task)
            if size is not None or spec.task not in self._need_sizes
        ]
        items = [item_of(spec.task, problem.solution, spec.params, size) for _, problem, spec, size in asked]
        found: list[str | None] = [None] * len(rows)
        for (place, problem, spec, size), said in zip(asked, self._judge.refusals(items), strict=True):
            if said is None or found[place] is not None:
                continue
            if said.startswith(f"params of task {spec.task}: "):
                raise ConfigurationError(f"option 'reward_params': {said}")
            found[place] = said if size is not None else self._with_size(problem, spec, said)
        return found

    def _specs(self, task: str) -> tuple[RewardSpec, ...]:
        """None of a task that is left out."""
        if task not in self._known:
            weights = self._config.task_weights
            is_asked = not weights or weights.get(task)
            self._known[task] = self._config.reward_specs_for(task) if is_asked else ()
        return self._known[task]

    def _with_size(self, problem: Problem, spec: RewardSpec, said: str) -> str | None:
        """What is said when the image's size is told, too: a reward may be unable to do without."""
        if spec.task in self._need_sizes:
            return None
        if not problem.images or not self._looks:
            return said
        self._looks -= 1
        try:
            size = self._store.size(problem.images[0])
        except UnreachableImageError:
            raise
        except ImageError:
            return None  # of which nothing is known; its image is named when its turn comes
        (again,) = self._judge.refusals([item_of(spec.task, problem.solution, spec.params, size)])
        if again is None:
            self._need_sizes.add(spec.task)
        return again


def _options(config: RunConfig) -> str:
    """What `mmr1 data validate` must be told to judge training rows as the run does."""
    options = "" if config.rewards == [OWN_TASK] else f" --rewards {shlex.join(config.rewards)}"
    params = f" --reward_params {shlex.quote(json.dumps(config.reward_params))}" if config.reward_params else ""
    return options + params + (f" --task {shlex.quote(config.task)}" if config.task != "counting" else "")


def item_of(task: str, solution: Any, params: Any, size: Size | None) -> dict[str, Any]:
    """An item with an empty response, which is scored wherever the row itself is right."""
    return {"id": "0", "task": task, "response": "", "solution": solution, "params": dict(params), "image_size": size}


def said_of(refusal: str, answer_key: str) -> str:
    """A judge's refusal as what is wrong with a row, by its key."""
    if _is_unknown(refusal):
        return f"key 'task': {refusal}"
    return f"key {answer_key!r} cannot be scored: {refusal}; repair or remove the row"


def _at(problems: Problems, indices: Sequence[int]) -> Iterator[tuple[int, Problem]]:
    """In order, which for all of them is faster than one by one."""
    return enumerate(problems) if len(indices) == len(problems) else ((index, problems[index]) for index in indices)


def _in_parts(rows: Iterable[_T]) -> Iterator[list[_T]]:
    there = iter(rows)
    while some := list(islice(there, _ROWS_AT_ONCE)):
        yield some


__all__ = ["RowJudge", "ServerJudge", "check_own_rows", "check_rows_of_server", "item_of", "said_of", "sizes_of"]
