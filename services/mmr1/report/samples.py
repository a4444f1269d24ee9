"""Chooses the completions that the report shows, and makes their images small enough to travel inside the page.

The choice never looks at rewards: groups are taken evenly over the run, by position in a shuffled order. Completions
that could not be scored, or were scored as invalid, are rare, so some are added and marked as picked for their outcome.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmr1.drawn_boxes import Box, predicted, true
from mmr1.images import ImageError, ImageStore
from mmr1.remote_images import RemoteRoot
from mmr1.report.run_files import Record, RunFiles, number
from mmr1.report.tokens import Gaps, Piece, clip, pieces

MAX_ROWS = 120  # different completions on the page
MAX_STEPS = 24  # steps that the page shows groups of
MAX_CHARACTERS = 4000  # of one completion or prompt
MAX_IMAGE_SIDE = 320  # pixels
MAX_PNG_BYTES = 24_000  # above this an image becomes a JPEG
MAX_IMAGE_BYTES = 4_500_000  # of all images on the page
EXTRA_PER_OUTCOME = 4  # groups picked for an outcome other than ok

GroupKey = tuple[int, str]


@dataclass(frozen=True)
class Row:
    """Completions of one group that are equal in text and score; `count` says how many.

    `boxes` are what was read out of it, in pixels of the group's first image.
    """

    pieces: list[Piece]
    gaps: Gaps | None
    boxes: list[Box]
    reward: float | None
    components: dict[str, float]
    outcome: str
    detail: str
    advantage: float | None
    policy_version: str
    policy_lag: float | None
    finish_reason: str
    count: int


@dataclass(frozen=True)
class Sample:
    """One group (of an evaluation: one problem, and no step): what was asked, about which images, and the completions.

    `images` are data URIs, empty where there is none. `size` is the first image's as it was asked about, `truth` the
    solution's boxes in its pixels.
    """

    step: int
    prompt_id: str
    task: str
    problem: str
    prompt: str
    solution: str
    rows: list[Row]
    picked_for: str = ""
    images: list[str] = field(default_factory=list)
    image_problems: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    truth: list[Box] = field(default_factory=list)

    @property
    def first_with_boxes(self) -> int | None:
        """The place of the first row that has boxes to draw."""
        return next((place for place, row in enumerate(self.rows) if row.boxes), None)


def choose(run: RunFiles, seed: int = 0) -> list[Sample]:
    """At most MAX_ROWS completions of the run, in groups, by step. Reads completions.jsonl twice, keeps little."""
    steps: dict[int, set[str]] = {}
    told: set[GroupKey] = set()  # whose tokens are on record
    notable: dict[GroupKey, str] = {}
    counts: Counter[str] = Counter()
    for record in run.completions():
        key = _key(record)
        if key is None:
            continue
        steps.setdefault(key[0], set()).add(key[1])
        if "tokens" in record:
            told.add(key)
        outcome = str(record.get("outcome"))
        if outcome != "ok" and key not in notable and counts[outcome] < EXTRA_PER_OUTCOME:
            counts[outcome] += 1
            notable[key] = outcome
    candidates = _candidates(steps, told, random.Random(seed))
    groups: dict[GroupKey, list[Record]] = {key: [] for key in (*candidates, *notable)}
    for record in run.completions():
        key = _key(record)
        if key is not None and key in groups:
            groups[key].append(record)
    return with_images(run.image_root, fill(candidates, notable, groups))


def _key(record: Record) -> GroupKey | None:
    step = record.get("step")
    return (step, str(record.get("prompt_id"))) if isinstance(step, int) else None


def _candidates(steps: dict[int, set[str]], told: set[GroupKey], chance: random.Random) -> list[GroupKey]:
    """Groups of evenly spread steps, first one of each step, then a second of each, and so on.

    Those whose tokens are on record come first: the learner has drawn them, without a look at rewards too.
    """
    numbers = sorted(steps)
    if len(numbers) > MAX_STEPS:
        numbers = sorted({step for step, _ in told}) if len({step for step, _ in told}) > MAX_STEPS else numbers
        numbers = [numbers[round(place * (len(numbers) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)]
    shuffled = {step: chance.sample(sorted(steps[step]), min(MAX_ROWS, len(steps[step]))) for step in numbers}
    for step, prompts in shuffled.items():
        prompts.sort(key=lambda prompt: (step, prompt) not in told)  # stable: drawn within both kinds
    deepest = max((len(prompts) for prompts in shuffled.values()), default=0)
    keys = [(step, shuffled[step][turn]) for turn in range(deepest) for step in numbers if turn < len(shuffled[step])]
    return keys[:MAX_ROWS]


def fill(
    candidates: list[GroupKey], notable: dict[GroupKey, str], groups: dict[GroupKey, list[Record]]
) -> list[Sample]:
    """Take groups while there is room; those picked for their outcome may use a sixth of it."""
    samples: dict[GroupKey, Sample] = {}
    room = MAX_ROWS
    for key, picked_for, reserve in [
        *((key, outcome, MAX_ROWS * 5 // 6) for key, outcome in notable.items()),
        *((key, "", 0) for key in candidates),
    ]:
        if key in samples:
            continue
        sample = _sample(groups[key], picked_for)
        if room - len(sample.rows) >= reserve:
            samples[key] = sample
            room -= len(sample.rows)
    return [samples[key] for key in sorted(samples)]


def _sample(records: list[Record], picked_for: str) -> Sample:
    first = records[0]
    task, coordinates, size = str(first.get("task") or ""), first.get("coordinates"), _size(first)
    return Sample(
        step=int(first["step"]),
        prompt_id=str(first.get("prompt_id")),
        task=task,
        problem=_clip(first.get("problem")),
        prompt=_clip(first.get("prompt")),
        solution=_clip(_words(first.get("solution"))),
        rows=_rows(records, task, size),
        picked_for=picked_for,
        images=[str(path) for path in first.get("images") or ()],
        size=size,
        truth=true(first.get("solution"), coordinates, task, size),
    )


def _size(record: Record) -> tuple[int, int] | None:
    """The first image's size; None where none is on record."""
    match record.get("image_sizes"):
        case [[int(width), int(height)], *_] if 0 < width < 10**6 and 0 < height < 10**6:
            return width, height
    return None


def _rows(records: list[Record], task: str, size: tuple[int, int] | None) -> list[Row]:
    alike: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        names = ("completion", "reward", "outcome", "detail", "policy_version", "finish_reason")
        alike.setdefault(tuple(str(record.get(name)) for name in names), []).append(record)
    rows = []
    for same in alike.values():
        told = next((record for record in same if "tokens" in record), same[0])
        rows.append(_row(told, len(same), task, size))
    return sorted(rows, key=lambda row: (row.reward is None, -(row.reward or 0.0), -row.count))


def _row(record: Record, count: int, task: str, size: tuple[int, int] | None) -> Row:
    components = record.get("components")
    parts = components if isinstance(components, dict) else {}
    completion = str(record.get("completion") or "")
    said, gaps = pieces(record.get("tokens"), record.get("gaps"), completion, MAX_CHARACTERS)
    return Row(
        pieces=said,
        gaps=gaps,
        boxes=predicted(record.get("parsed"), record.get("coordinates"), task, size),
        reward=number(record, "reward"),
        components={str(name): value for name in parts if (value := number(parts, name)) is not None},
        outcome=str(record.get("outcome") or ""),
        detail=_clip(record.get("detail")),
        advantage=number(record, "advantage"),
        policy_version=str(record.get("policy_version") or ""),
        policy_lag=number(record, "policy_lag"),
        finish_reason=str(record.get("finish_reason") or ""),
        count=count,
    )


def _clip(value: object) -> str:
    return clip("" if value is None else value if isinstance(value, str) else str(value), MAX_CHARACTERS)


def _words(solution: object) -> object:
    return json.dumps(solution, ensure_ascii=False) if isinstance(solution, list | dict) else solution


def with_images(root: Path | RemoteRoot | None, samples: Iterable[Sample]) -> list[Sample]:
    """Replace image paths by data URIs, and those that cannot be shown by an empty one and a sentence."""
    store = ImageStore(root) if root else None
    ready: dict[str, str] = {}
    left = MAX_IMAGE_BYTES
    shown = []
    for sample in samples:
        uris, problems = [""] * len(sample.images), []
        for place, path in enumerate(sample.images):
            if store is None:
                problems.append(f"image {path}: config.yaml, which says where images are, is missing")
                continue
            if path not in ready:
                try:
                    ready[path] = _data_uri(store.open(store.ref(path)))
                except ImageError as error:
                    problems.append(str(error))
                    continue
            if left < len(ready[path]):
                problems.append(f"image {path}: left out to keep this page small")
                continue
            left -= len(ready[path])
            uris[place] = ready[path]
        shown.append(replace(sample, images=uris, image_problems=problems))
    return shown


def _data_uri(image: Image.Image) -> str:
    """At most MAX_IMAGE_SIDE on a side: a PNG when that is small, else a JPEG."""
    image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    content, kind = _encode(image, "PNG"), "png"
    if len(content) > MAX_PNG_BYTES:
        content, kind = _encode(image, "JPEG"), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encode(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name, optimize=True, quality=80)
    return buffer.getvalue()
