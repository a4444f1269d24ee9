"""JSON is read through a window that moves: what stands across its edges is read as if it did not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmr1.reading import json_rows as module
from mmr1.reading.json_rows import Malformed, json_rows


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW_BYTES", 7)


def drawn(rng: random.Random) -> Any:
    texts = ["", 'a "quoted" \\ text', "cafés \u00e9\U0001f600", "line\nbreak", "]}{[,"]
    scalars: list[Any] = [rng.randrange(-1000, 1000), rng.random(), True, None, rng.choice(texts)]
    if rng.random() < 0.5:
        return rng.choice(scalars)
    return [drawn(rng)] if rng.random() < 0.5 else {rng.choice(texts): drawn(rng), "more": [1, "two"]}


@pytest.mark.parametrize("seed", range(20))
def test_every_value_is_read_across_the_windows_edges(seed: int, tmp_path: Path, small_window: None) -> None:
    rng = random.Random(seed)
    values = [drawn(rng) for _ in range(30)]
    layout = {"indent": rng.choice([None, 1, 2]), "ensure_ascii": rng.random() < 0.5}
    text = json.dumps(values, **layout)
    path = tmp_path / "rows.json"
    path.write_text(("\ufeff" if seed % 2 else "") + text, encoding="utf-8")
    found = list(json_rows(path))
    assert [value for _, value in found] == values
    if layout["indent"]:
        starts = [line for line, _ in found]
        assert starts == sorted(starts) and starts[0] == 2
        first = text.split("\n")[starts[-1] - 1].strip().rstrip(",")
        assert json.dumps(values[-1], **layout).startswith(first)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (
            b'[\n{"a": 1},\n{"a": 1,,}\n]',
            3,
            "is not JSON (Expecting property name enclosed in double quotes, column 9)",
        ),
        (b'[{"a": 1}, {"a": tru}]', 1, "is not JSON (Expecting value, column 18)"),
        (b'[\n{"a": "never ends', 2, "is not JSON (Unterminated string starting at, column 7)"),
        (b'[\n{"a": 1},\n{"a": "caf\xe9"}]', 3, "is not UTF-8"),
        (b'[\n{"a": 1}\n\xe9]', 3, "is not UTF-8"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n{"a": 1}', 2, "is not UTF-8"),
        (b'[{"a": 1}\n;', 2, "found ';'"),
    ],
)
def test_what_is_wrong_is_said_of_its_own_line_and_column(
    content: bytes, line: int, reason: str, tmp_path: Path, small_window: None
) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    wrong = [(at, row.reason) for at, row in json_rows(tmp_path / "rows.json") if isinstance(row, Malformed)]
    assert len(wrong) == 1 and wrong[0][0] == line and reason in wrong[0][1]


def test_a_line_that_does_not_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_ROW_BYTES", 1000)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 5000 + '"}\n{"a": 1}\n')
    assert [row for _, row in json_rows(tmp_path / "rows.jsonl")] == [
        {"a": 1},
        Malformed("is longer than 1000 bytes; rows after it were not read"),
    ]
