"""What an evaluation leaves in its folder, and how one that was ended goes on: no problem is asked twice.

samples.jsonl has a line for each answer, appended as it is judged; evaluation.json says of which evaluation they are.
results.json and results.md come last. Knows no service.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmr1.evaluation import Answer, TaskResult
from mmr1.evaluation.tables import as_markdown
from mmr1.records import Group
from mmr1.run_identity import check_same_evaluation

IDENTITY, SAMPLES, RESULTS, TABLE = "evaluation.json", "samples.jsonl", "results.json", "results.md"


class EvaluationFiles:
    """The folder of one evaluation."""

    def __init__(self, folder: Path, num_samples: int) -> None:
        """`num_samples`: answers to each problem. A problem with fewer in its file is asked again."""
        self._folder = folder
        self._num_samples = num_samples
        self._records: dict[tuple[int, int], dict[str, Any]] = {}

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Take up what is there, and throw away what an end in the middle of writing has left.

        Raises:
            ConfigurationError: what is there is of another evaluation.
        """
        path = self._folder / IDENTITY
        if path.exists():
            check_same_evaluation(json.loads(path.read_text()), dict(identity), self._folder)
            self._records = self._read()
        _replace(path, json.dumps(dict(identity), indent=1))
        self._write_samples()

    @property
    def answered(self) -> set[int]:
        """The places of the problems that have all their answers."""
        return {place for place, _ in self._records}

    @property
    def answers(self) -> list[Answer]:
        return [Answer.from_json(record) for _, record in sorted(self._records.items())]

    def append(self, group: Group, answers: Sequence[Answer]) -> None:
        """The judged answers to one problem, in one write."""
        records = [self._record(group, answer) for answer in answers]
        self._records |= {(record["problem"], record["sample"]): record for record in records}
        with (self._folder / SAMPLES).open("a", encoding="utf-8") as file:
            file.write("".join(_line(record) for record in records))

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

    def _read(self) -> dict[tuple[int, int], dict[str, Any]]:
        path = self._folder / SAMPLES
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # behind the last newline is half a line
        records = [json.loads(line) for line in lines]
        found = {(record["problem"], record["sample"]): record for record in records}
        numbers = Counter(place for place, _ in found)
        return {key: record for key, record in found.items() if numbers[key[0]] == self._num_samples}

    def _write_samples(self) -> None:
        _replace(self._folder / SAMPLES, "".join(_line(record) for _, record in sorted(self._records.items())))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _replace(path: Path, text: str) -> None:
    aside = path.with_suffix(path.suffix + ".writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
