"""Chooses the answers of an evaluation that its report shows, and brings them to the form of the gallery.

As of a run, the choice never looks at rewards: problems are drawn at random, and some more are added, and marked, whose
answers were invalid. Knows samples.jsonl's keys, and no markup.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from mmr1.remote_images import RemoteRoot
from mmr1.report.run_files import Record, lines_of
from mmr1.report.samples import EXTRA_PER_OUTCOME, MAX_ROWS, GroupKey, Sample, fill, with_images


def choose_answers(samples_file: Path, image_root: Path | RemoteRoot | None, seed: int = 0) -> list[Sample]:
    """At most MAX_ROWS answers, whole problems of them, in the order of the problems. Reads the file twice."""
    if not samples_file.exists():
        return []
    problems: dict[int, None] = {}
    notable: dict[GroupKey, str] = {}
    counts: Counter[str] = Counter()
    for record in lines_of(samples_file, []):
        problem = _problem(record)
        if problem is None:
            continue
        problems[problem] = None
        outcome = _outcome(record)
        if outcome != "ok" and _key(problem) not in notable and counts[outcome] < EXTRA_PER_OUTCOME:
            counts[outcome] += 1
            notable[_key(problem)] = outcome
    drawn = random.Random(seed).sample(sorted(problems), min(MAX_ROWS, len(problems)))
    groups: dict[GroupKey, list[Record]] = {key: [] for key in (*map(_key, drawn), *notable)}
    for record in lines_of(samples_file, []):
        problem = _problem(record)
        if problem is not None and _key(problem) in groups:
            groups[_key(problem)].append(_as_completion(record, problem))
    return with_images(image_root, fill([_key(problem) for problem in drawn], notable, groups))


def _key(problem: int) -> GroupKey:
    """Of the gallery's groups: their order, and their name."""
    return problem, str(problem)


def _problem(record: Record) -> int | None:
    problem = record.get("problem")
    return problem if isinstance(problem, int) else None


def _outcome(record: Record) -> str:
    return "ok" if record.get("is_valid") is True else "invalid_output"


def _as_completion(record: Record, problem: int) -> Record:
    """A line of samples.jsonl as one of completions.jsonl. One of an older release has no question, but a prompt."""
    task, size = str(record.get("task") or ""), record.get("image_size")
    same = {key: record.get(key) for key in ("prompt", "solution", "images", "reward", "components", "detail")}
    return {
        **same,
        "step": problem,
        "prompt_id": str(problem),
        "task": task,
        "problem": record.get("question"),
        "completion": record.get("response"),
        "outcome": _outcome(record),
        "finish_reason": "length" if record.get("is_truncated") is True else "stop",
        "policy_version": record.get("version"),
        "parsed": {task: record.get("parsed")},
        "coordinates": {task: record.get("params")},
        "image_sizes": [size],
    }


__all__ = ["choose_answers"]
