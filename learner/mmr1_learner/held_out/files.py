"""What an evaluation leaves in its folder, and how one that was ended goes on: no problem is asked twice.

samples.jsonl has a line for each answer, on disk as soon as it is judged; evaluation.json says of which evaluation they
are. results.json and results.md come last. A file may be damaged, by a machine that went down or by a hand: a line that
is no answer of this evaluation is left aside with a warning, and answers of which nobody knows any more what they are
of are refused, never thrown away. Knows no service.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmr1.errors import ConfigurationError
from mmr1.evaluation import Answer, TaskResult
from mmr1.evaluation.tables import as_markdown
from mmr1.records import Group, Problem
from mmr1.run_identity import check_same_evaluation

IDENTITY, SAMPLES, RESULTS, TABLE = "evaluation.json", "samples.jsonl", "results.json", "results.md"


def recorded_identity(folder: Path) -> dict[str, Any] | None:
    """Which evaluation the answers in `folder` are of; None where no answers are.

    Raises:
        ConfigurationError: answers are there, and evaluation.json is missing or cannot be read.
    """
    samples = folder / SAMPLES
    if not samples.exists() or not samples.stat().st_size:
        return None
    what = "is missing"
    if (folder / IDENTITY).exists():
        what = "cannot be read"
        try:
            found = json.loads((folder / IDENTITY).read_bytes())
        except ValueError:  # also of bytes that are no text
            found = None
        if isinstance(found, dict) and found:
            return found
    raise ConfigurationError(
        f"{folder / IDENTITY} {what}, so nobody knows which evaluation the answers in {SAMPLES} beside it are of; "
        f"restore it, give another --eval_dir, or move {SAMPLES} away to ask every problem again"
    )


class EvaluationFiles:
    """The folder of one evaluation."""

    def __init__(self, folder: Path, problems: Sequence[Problem], num_samples: int) -> None:
        """`num_samples`: answers to each problem. A problem with fewer in its file is asked again."""
        self._folder = folder
        self._problems = problems
        self._num_samples = num_samples
        self._records: dict[tuple[int, int], dict[str, Any]] = {}

    def begin(self, identity: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        """Take up what is there. `warn` is told of lines that are no answers of this evaluation.

        Raises:
            ConfigurationError: what is there is of another evaluation, or nobody knows of which.
        """
        before = recorded_identity(self._folder)
        if before is not None:
            check_same_evaluation(before, dict(identity), self._folder)
            self._records = self._read(warn)
        _replace(self._folder / IDENTITY, json.dumps(dict(identity), indent=1))
        self._write_samples()

    @property
    def answered(self) -> set[int]:
        """The places of the problems that have all their answers."""
        return {place for place, _ in self._records}

    @property
    def answers(self) -> list[Answer]:
        return [Answer.from_json(record) for _, record in sorted(self._records.items())]

    def append(self, group: Group, answers: Sequence[Answer]) -> None:
        """The judged answers to one problem, in one write, and on disk when this returns."""
        records = [self._record(group, answer) for answer in answers]
        self._records |= {(record["problem"], record["sample"]): record for record in records}
        with (self._folder / SAMPLES).open("a", encoding="utf-8") as file:
            file.write("".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, facts: dict[str, Any], results: Sequence[TaskResult]) -> None:
        """The results, and the answers in the order of their problems."""
        self._write_samples()
        document = {**facts, "tasks": [result.as_json() for result in results]}
        _replace(self._folder / RESULTS, json.dumps(document, indent=2) + "\n")
        _replace(self._folder / TABLE, as_markdown(facts, results))

    def _record(self, group: Group, answer: Answer) -> dict[str, Any]:
        prompt = group.prompt
        asked = {"question": prompt.problem, "prompt": prompt.text, "images": [image.path for image in prompt.images]}
        return {**answer.as_json(), **asked, "server": group.server_id}

    def _read(self, warn: Callable[[str], None]) -> dict[tuple[int, int], dict[str, Any]]:
        path = self._folder / SAMPLES
        *lines, torn = path.read_bytes().split(b"\n")  # behind the last newline is half a line
        found: dict[tuple[int, int], dict[str, Any]] = {}
        bad = []
        for number, line in enumerate(lines, start=1):
            answer = self._answer_in(line)
            if answer is None:
                bad.append(number)
            else:
                found[answer.problem, answer.sample] = json.loads(line)
        if torn:
            bad.append(len(lines) + 1)
        if bad:
            which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} lines, the first of them {bad[0]}, are"
            warn(f"{path}: {which} no answer of this evaluation; what is missing without is asked again")
        numbers = Counter(place for place, _ in found)
        return {key: record for key, record in found.items() if numbers[key[0]] == self._num_samples}

    def _answer_in(self, line: bytes) -> Answer | None:
        """None: the line is damaged, or of something else."""
        try:
            answer = Answer.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        asked = 0 <= answer.problem < len(self._problems) and 0 <= answer.sample < self._num_samples
        return answer if asked and answer.task == self._problems[answer.problem].task else None

    def _write_samples(self) -> None:
        _replace(self._folder / SAMPLES, "".join(_line(record) for _, record in sorted(self._records.items())))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _replace(path: Path, text: str) -> None:
    """Whatever happens, the file is the old one or the new one, whole: a name without its bytes would be neither."""
    aside = path.with_suffix(path.suffix + ".writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
