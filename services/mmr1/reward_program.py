"""Asks the reward server that is installed in this environment, which need not run: what it offers, how it scores.

Its code may not be imported here, so its program is called. It answers one question and ends; `OwnJudge` keeps it
while there are rows to be looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Self

from pydantic import BaseModel

from mmr1.errors import ConfigurationError
from mmr1_reward_server.api import Item, Result, TaskInfo, TaskList

_ANSWER_SECONDS = 120.0  # two on an idle machine


class Pair(BaseModel):
    """A box of the response and the true one that it was matched with, each by its place from 0."""

    predicted: int
    true: int
    iou: float


class Explanation(BaseModel):
    """One item's result. `refused`: the item itself is at fault. `pairs`: None for tasks that match nothing."""

    result: Result
    refused: bool
    pairs: list[Pair] | None


def own_tasks() -> list[TaskInfo]:
    """All tasks, with an example of each.

    Raises:
        ConfigurationError: the reward server does not start.
    """
    return TaskList.model_validate_json(ask(["--describe-tasks"])).tasks


def explain(item: Item) -> Explanation:
    """How the server scores the item.

    Raises:
        ConfigurationError: as `own_tasks`.
    """
    question: dict[str, Any] = item.model_dump(mode="json")
    return Explanation.model_validate_json(ask(["--explain", "-"], json.dumps(question)))


class OwnJudge:
    """The program, told items and asked which it can never score. Use it as `with`; it starts at the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def refusals(self, items: Sequence[dict[str, Any]]) -> list[str | None]:
        """For each item, as POST /v1/score takes it: None, or why no response to it can be scored.

        Raises:
            ConfigurationError: as `own_tasks`, or the program ends.
        """
        process = self._process or self._start()
        assert process.stdin and process.stdout
        timer = threading.Timer(_ANSWER_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(items) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise self._ended()
        answers: list[str | None] = json.loads(line)
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()  # it is asked nothing now, and holds nothing
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the judge; a pipe that nobody reads fills
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmr1_reward_server", "--refusals"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self._process

    def _ended(self) -> ConfigurationError:
        assert self._process is not None and self._errors is not None
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        return ConfigurationError(
            f"the reward server of this environment does not look at the rows: {said[-1]}; `make setup` installs it"
        )


def ask(arguments: Sequence[str], text: str = "") -> str:
    """What the program prints when it is given `text`.

    Raises:
        ConfigurationError: it takes too long, or does not start.
    """
    command = [sys.executable, "-m", "mmr1_reward_server", *arguments]
    try:
        answered = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"the reward server does not answer within {_ANSWER_SECONDS:.0f} s; run {' '.join(command)}"
        ) from None
    if answered.returncode != 0:
        lines = answered.stderr.strip().splitlines() or [f"exit code {answered.returncode}"]
        raise ConfigurationError(f"the reward server does not start: {lines[-1]}; `make setup` installs it")
    return answered.stdout


__all__ = ["Explanation", "OwnJudge", "Pair", "ask", "explain", "own_tasks"]
