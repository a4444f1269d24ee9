"""Asks rollout servers for the answers that are missing, has each judged, and keeps it at once.

A server that pauses for a weight update, or comes back after a failure, is waited for. Starts no service and knows no
metric.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc

from mmr1.config.eval_options import EvalConfig
from mmr1.errors import ConfigurationError
from mmr1.evaluation import Judge, metrics_of
from mmr1.records import Group, Problem
from mmr1.rollout_client import RolloutClient
from mmr1_learner.held_out.files import EvaluationFiles
from mmr1_learner.prompts import PromptFactory

PROMPTS_AT_ONCE = 32  # on each server
CALL_SECONDS = 600.0
AWAY_SECONDS = 600.0  # for a server that does not serve to do so again
AGAIN_SECONDS = 1.0

_T = TypeVar("_T")


class Asking:
    """One evaluation's questions.

    Args:
        progress: called after each problem, with the number of those that have their answers.
    """

    def __init__(
        self,
        config: EvalConfig,
        problems: Sequence[Problem],
        prompts: PromptFactory,
        files: EvaluationFiles,
        progress: Callable[[int], None],
    ) -> None:
        self._config = config
        self._problems = problems
        self._prompts = prompts
        self._files = files
        self._progress = progress
        self._num_done = 0
        self._keeping = asyncio.Lock()
        self._ended = threading.Event()

    async def ask_all(self, clients: Sequence[RolloutClient], judge: Judge) -> None:
        """Every problem that has not all its answers yet.

        Raises:
            ConfigurationError: a prompt or its image is refused, or a row cannot be scored.
            RewardServerError: the reward server does not answer, or cannot judge an item in several tries.
            grpc.RpcError: a rollout server has failed for longer than AWAY_SECONDS.
        """
        answered = self._files.answered
        missing = iter([place for place in range(len(self._problems)) if place not in answered])
        self._num_done = len(answered)
        pool = ThreadPoolExecutor(len(clients) * PROMPTS_AT_ONCE, thread_name_prefix="asking")
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    for _ in range(PROMPTS_AT_ONCE):
                        group.create_task(self._one_after_another(client, missing, pool, judge))
        except ExceptionGroup as errors:
            raise _cause(errors) from None
        finally:
            self._ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    async def _one_after_another(
        self, client: RolloutClient, missing: Iterable[int], pool: ThreadPoolExecutor, judge: Judge
    ) -> None:
        loop = asyncio.get_running_loop()
        for place in missing:
            group, size = await loop.run_in_executor(pool, self._ask, client, place)
            answers = await judge.judge([group], [place], [size])
            async with self._keeping:  # in a thread: a disk that takes its time must not look like silent servers
                await asyncio.to_thread(self._files.append, group, answers)
            self._num_done += 1
            self._progress(self._num_done)

    def _ask(self, client: RolloutClient, place: int) -> tuple[Group, tuple[int, int] | None]:
        """In a thread: what the server answers, and the size of the image that it is about."""
        config, problem = self._config, self._problems[place]
        prompt = self._prompts.evaluation(place, problem, config.evaluation_temperature, config.num_samples)
        size = self._prompts.image_size(prompt) if metrics_of(problem.task).takes_size else None
        try:
            return self._until_served(lambda: client.generate(prompt, timeout=CALL_SECONDS)), size
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise ConfigurationError(f"{config.eval_file}: row {problem.position + 1}: {error.details()}") from None
            raise

    def _until_served(self, call: Callable[[], _T]) -> _T:
        end = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                away = error.code() is grpc.StatusCode.UNAVAILABLE
                if not away or time.monotonic() > end or self._ended.wait(AGAIN_SECONDS):
                    raise


def _cause(errors: ExceptionGroup[Exception]) -> Exception:
    """What has ended the evaluation: of several failures the one that somebody must mend."""
    (wrong, _), first = errors.split(ConfigurationError), errors.exceptions[0]
    if wrong is not None:
        first = wrong.exceptions[0]
    return _cause(first) if isinstance(first, ExceptionGroup) else first
