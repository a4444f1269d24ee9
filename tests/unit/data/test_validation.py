"""`mmr1 data validate`: every bad row of any format at once, and what the good ones hold, in bounded memory."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmr1.data_cli import main
from mmr1.reading.statistics import Distinct, Statistics


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_every_bad_row_of_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png(4))
    (tmp_path / "cut.png").write_bytes(png(400)[:-30])
    good = {"problem": "How many?", "solution": 3, "image": "a.png"}
    rows = [good, good | {"image": "cut.png"}, good | {"solution": ""}, good | {"image": ["a.png", "no.png"]}]
    lines = [*map(json.dumps, rows), "{", '"text"', json.dumps({"q": "?"})]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"problem": "caf\xe9"}\n' + json.dumps(good).encode())
    assert main(["validate", str(path)]) == 2
    *bad, warning, last = capsys.readouterr().err.splitlines()
    assert [line.removeprefix(str(path)).split(": ", 1) for line in bad] == [
        [
            ":2",
            f"key 'image': image cut.png: is cut short ({len(png(400)) - 30} bytes); restore the complete file; fix "
            "the file or remove the row",
        ],
        [":3", "key 'solution' is empty; give the right answer or remove the row"],
        [":4", f"key 'image': image no.png: does not exist below {tmp_path}; fix the file or remove the row"],
        [
            ":5",
            "is not JSON (Expecting property name enclosed in double quotes, column 2); JSON Lines hold one object a "
            "line",
        ],
        [":6", "a row must be an object with 'problem', 'solution' and 'image'"],
        [":7", "key 'problem' is missing; the row has ['q']; set problem_key"],
        [":8", "is not UTF-8; save the file as UTF-8"],
    ]
    assert warning.endswith("has a task: all were taken to be counting; give --task for another")
    assert last == f"mmr1: error: {path}: 7 of 9 rows are bad; repair or remove them"


def test_every_bad_row_of_a_table_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [png(8), b"no image", png(8), png(300)[:-60]]
    columns: dict[str, Any] = {"q": ["?", "?", None, "?"], "a": [1, 2, 3, 4]}
    columns["img"] = [[{"bytes": image, "path": None}] for image in images]
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    words = ["--problem_key", "q", "--answer_key", "a", "--image_key", "img"]
    assert main(["validate", str(tmp_path / "rows.parquet"), *words, "--task", "counting"]) == 2
    second, third, fourth, last = capsys.readouterr().err.splitlines()
    assert "rows.parquet: row 2: key 'img': image (embedded): is not one of PNG" in second
    assert "rows.parquet: row 3: key 'q' must be a text" in third
    assert "row 4: key 'img': image (embedded): is cut short" in fourth and fourth.endswith("; remove the row")
    assert last.endswith("3 of 4 rows are bad; repair or remove them")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_what_good_rows_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(4, 6), (4, 6), (10, 20)]):
        Image.new("L", size).save(tmp_path / "images" / f"{index}.png")
    rows: list[dict[str, Any]] = [
        {"problem": "How many?", "solution": 3, "image": "0.png"},
        {"problem": "How many?", "solution": 5, "image": "1.png"},
        {"problem": "How many?", "solution": 5, "image": ["0.png", "2.png"]},
        {"problem": "What does it say here?", "solution": "abc", "image": "2.png", "task": "ocr"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["validate", str(tmp_path / "rows.json"), "--image_dir", str(tmp_path / "images")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/rows.json: 4 problems, all good",
        "  rows       4",
        "  tasks      counting (3), ocr (1)",
        "  problems   9 to 22, mean 12.25 characters; 2 different",
        "  solutions  of counting: numbers 3 to 5, mean 4.333; 2 different; most common: 5 (2), 3 (1)",
        "  solutions  of ocr: characters 3 to 3, mean 3; 1 different",
        "  images     5 named, 3 different; in a row 1 to 2, mean 1.25",
        "  pixels     width 4 to 10, mean 6.4; height 6 to 20, mean 11.6; most common: 4x6 (3), 10x20 (2)",
    ]


def test_different_values_are_counted_or_estimated() -> None:
    few, many = Distinct(), Distinct()
    for value in range(4000):
        few.add(str(value))
        few.add(str(value))
    for value in range(200_000):
        many.add(str(value))
    assert str(few) == "4000"
    estimate = int(str(many).removeprefix("about ").replace(",", ""))
    assert abs(estimate - 200_000) < 10_000


def test_statistics_forget_what_is_too_much() -> None:
    """A million different solutions are no million entries."""
    statistics = Statistics()
    for index in range(12_000):
        statistics.add_row(f"{index}?", f"answer {index}", "ocr", 1)
        statistics.add_image(f"{index}.png", (index, 28))
    (line,) = [line for line in str(statistics).splitlines() if "solutions" in line]
    assert re.search(r"of ocr: characters 8 to 12, mean 11\.07; about 1[12],\d00 different$", line)
