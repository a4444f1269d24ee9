"""RefCOCO's forms of JSON, PixMo-Count, CLEVR and pages: each drawn in its published form, converted and validated."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.unit.convert.published import convert, lines, pictures, rows, written

INSTANCES = {
    "images": [
        {"id": 581857, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 98304, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [10.39, 5.99, 20.1, 30.07], "iscrowd": 0},
        {"id": 3, "image_id": 98304, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "person"}],
}


def ref(number: int, image: int, annotation: int, split: str, *sentences: str) -> dict[str, Any]:
    """As the original has it; its `file_name` carries the annotation's id and names no file."""
    return {
        "sent_ids": list(range(len(sentences))),
        "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
        "ann_id": annotation,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": [{"tokens": one.split(), "raw": one.upper(), "sent_id": 0, "sent": one} for one in sentences],
        "category_id": 1,
    }


REFS = [
    ref(0, 581857, 1719310, "train", "the lady with the blue shirt", "lady in blue"),
    ref(1, 98304, 3, "testA", "left one"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "images", a=(64, 48), b=(40, 30))
    written(tmp_path / "instances.json", INSTANCES)
    written(tmp_path / "refs(unc).json", REFS)
    return tmp_path


def refs(folder: Path, *options: str) -> int:
    instances = str(folder / "instances.json")
    return convert("refcoco", folder / "refs(unc).json", folder / "out", "--instances", instances, *options)


def test_each_sentence_of_a_ref_is_a_problem(folder: Path) -> None:
    assert refs(folder) == 0
    first, second, third = rows(folder / "out")
    assert first["problem"] == "Find the lady with the blue shirt and give its box."
    assert first["solution"] == second["solution"] == [10.39, 5.99, 30.49, 36.06] and third["solution"] == [
        0,
        0,
        10,
        10,
    ]
    assert [one["image"] for one in (first, third)] == ["images/a.png", "images/b.png"] and first["task"] == "grounding"


def test_one_split_of_the_refs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refs(folder, "--split", "testA", "--name", "eval", "--question", "{expression}") == 0
    assert "1 left out: it is of another split" in capsys.readouterr().out
    assert [row["problem"] for row in rows(folder / "out", "eval")] == ["left one"]
    assert refs(folder, "--split", "test") == 2
    assert "has testA, train" in capsys.readouterr().err


def test_a_captioned_coco_file_is_read_as_expressions(folder: Path) -> None:
    document = {
        "images": [
            {
                **INSTANCES["images"][0],
                "id": 0,
                "original_id": 581857,
                "caption": "lady in blue",
                "dataset_name": "refcoco",
            },
            {**INSTANCES["images"][0], "id": 1, "original_id": 581857, "caption": "man", "dataset_name": "refcoco"},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 4]], "category_id": 1},
            {"id": 1, "image_id": 1, "bbox": [5, 6, 7, 8], "tokens_positive": [[0, 3]], "category_id": 1},
        ],
        "categories": [],
    }
    file = written(folder / "finetune_refcoco_train.json", document)
    assert convert("refcoco", file, folder / "out") == 0
    assert [row["solution"] for row in rows(folder / "out")] == [[1, 2, 4, 6], [5, 6, 12, 14]]


@pytest.mark.parametrize("keys", [("img_path", "expression"), ("image", "sent")])
def test_rows_of_expression_image_and_box(folder: Path, keys: tuple[str, str]) -> None:
    image, expression = keys
    file = lines(
        folder / "REC_refcocog_umd_val.jsonl",
        {image: "a.png", expression: "lady in blue", "bbox": [10.4, 6.0, 30.5, 36.1], "height": 48, "width": 64},
        {image: "b.png", expression: "left one", "bbox": [0, 0, 10, 10], "height": 30, "width": 40},
    )
    assert convert("refcoco", file, folder / "out") == 0
    assert [row["solution"] for row in rows(folder / "out")] == [[10.4, 6.0, 30.5, 36.1], [0, 0, 10, 10]]


@pytest.mark.parametrize("name", ["finetune_refcocog_val.json", "REC_refcoco_unc_val_", "val.json"])
def test_json_lines_are_told_by_their_lines_and_not_by_their_name(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    row = {"img_path": "a.png", "expression": "lady", "bbox": [0, 0, 9, 9], "height": 48, "width": 64}
    file = lines(folder / name, row, row | {"expression": "man"})
    assert convert("refcoco", file, folder / "out") == 0
    assert len(rows(folder / "out")) == 2
    file.write_text("{\n" + file.read_text())
    assert convert("refcoco", file, folder / "out") == 0
    assert f"{file}: line 1: is not JSON" in capsys.readouterr().err
    for content in ('{"images": [{"id": 1, "caption": "a"', '{\n "images": [\n  {"id": 1},\n  {"id": 2}', "no JSON"):
        file.write_text(content)
        assert convert("refcoco", file, folder / "out") == 2
        assert f"{file} is not JSON" in capsys.readouterr().err
    file.unlink()
    assert convert("refcoco", file, folder / "out") == 2
    assert f"{file}: No such file or directory; give refs as JSON" in capsys.readouterr().err


def test_half_a_character_is_named_and_the_others_converted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"img_path": "a.png", "expression": "lady", "bbox": [0, 0, 9, 9], "height": 48, "width": 64}
    file = lines(folder / "val.jsonl", row, row | {"expression": "\ud83d"}, row | {"img_path": "\ud83d.png"})
    assert convert("refcoco", file, folder / "out") == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "line 2.expression: holds half a character (a lone surrogate)",
        "line 3.img_path: holds half a character (a lone surrogate)",
    ]
    assert len(rows(folder / "out")) == 1
    assert convert("refcoco", file, folder / "other", "--question", "Find \udce4 {expression}") == 2
    assert "a row cannot be written as UTF-8" in capsys.readouterr().err
    assert not list((folder / "other").glob("*.json"))


def test_a_picture_whose_name_is_no_text_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pictures(folder / "images", one=(4, 4)) / "one.png"
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    image.rename(image.with_name(f"{sha256}.\udce4"))
    row = {"image_url": "http://nowhere/x", "image_sha256": sha256, "label": "cups", "count": 2}
    assert convert("pixmo-count", lines(folder / "train.jsonl", row), folder / "out") == 2
    assert "has a name that is not UTF-8; rename it" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["refs(unc).p", "refs"])
def test_a_pickle_is_named_with_the_remedy_and_not_opened(
    folder: Path, capsys: pytest.CaptureFixture[str], protocol: int, name: str
) -> None:
    (folder / name).write_bytes(pickle.dumps(REFS, protocol))
    instances = str(folder / "instances.json")
    assert convert("refcoco", folder / name, folder / "out", "--instances", instances) == 2
    told = capsys.readouterr().err
    assert "is a pickle" in told and "nothing is unpickled here" in told and told.count("\n") == 1
    # The remedy is a command that works.
    import subprocess
    import sys

    command = told.split('python -c "')[1].split('", and give')[0]
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True, timeout=60)
    assert json.loads((folder / Path(name).with_suffix(".json")).read_text()) == REFS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ann_id": 5}, "[0].ann_id: is 5, which"),
        ({"image_id": None}, "[0].image_id: is null, not an id"),
        ({"split": ""}, "[0].split: is empty"),
        ({"sentences": [{"raw": " "}]}, "[0].sentences[0].raw: is empty"),
        ({"sentences": ["lady"]}, '[0].sentences[0]: is "lady", not an object'),
    ],
)
def test_a_bad_ref_is_named_and_the_others_converted(
    folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    written(folder / "refs(unc).json", [{**REFS[0], **change}, REFS[1]])
    assert refs(folder) == 0
    told = capsys.readouterr()
    assert f"{folder / 'refs(unc).json'}: {said}" in told.err and "1 left out: it is badly annotated" in told.out
    assert len(rows(folder / "out")) == 1


def test_refs_without_their_instances(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("refcoco", folder / "refs(unc).json", folder / "out") == 2
    assert "holds refs, whose boxes are elsewhere; give --instances" in capsys.readouterr().err
    file = lines(folder / "rows.jsonl", {"image": "a.png", "sent": "lady", "bbox": [1, 1, 2, 2]})
    assert convert("refcoco", file, folder / "out", "--split", "val") == 2
    assert "only refs have splits" in capsys.readouterr().err


def counted(folder: Path, name: str, label: str, count: Any, **changes: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256((folder / "images" / name).read_bytes()).hexdigest()
    points = [{"x": 1.5, "y": 2.0}] * (count if isinstance(count, int) else 1)
    url = f"https://nowhere.example/photos/{name}?w=640"
    return {"image_url": url, "image_sha256": sha256, "label": label, "count": count, "points": points, **changes}


def test_pixmo_counts_images_that_are_there_and_are_what_was_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = counted(folder, "a.png", "people", 4)
    renamed = counted(folder, "b.png", "dogs", 2)
    (folder / "images" / "b.png").rename(folder / "images" / renamed["image_sha256"])  # as a downloader may call it
    gone = {**kept, "image_url": "https://nowhere.example/gone.jpg", "image_sha256": "0" * 64}
    replaced = {**kept, "image_sha256": "1" * 64}
    wrong = {**kept, "count": "four"}
    file = lines(folder / "train.jsonl", kept, renamed, gone, replaced, wrong)
    assert convert("pixmo-count", file, folder / "out") == 0
    told = capsys.readouterr()
    assert [(row["problem"], row["solution"]) for row in rows(folder / "out")] == [
        ("How many people are there in the image?", 4),
        ("How many dogs are there in the image?", 2),
    ]
    assert "1 left out: the image is not there" in told.out and "2 bad annotations" in told.out
    assert "line 4.image_sha256: a.png is not the image that was annotated" in told.err
    assert 'line 5.count: is "four", not a whole number' in told.err


def test_pixmo_as_it_is_published_in_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    found = [counted(folder, "a.png", "people", 4), counted(folder, "b.png", "dogs", 2)]
    pq.write_table(pa.Table.from_pylist(found), folder / "train-00000-of-00001.parquet")
    assert convert("pixmo-count", folder / "train-00000-of-00001.parquet", folder / "out") == 0
    assert [row["solution"] for row in rows(folder / "out")] == [4, 2]


def question(text: str, answer: str | None, *functions: str) -> dict[str, Any]:
    program = [{"inputs": [], "function": name, "value_inputs": []} for name in functions]
    found = {"image_index": 0, "program": program, "question_index": 0, "image_filename": "a.png", "split": "trainA"}
    return {**found, "question": text, "answer": answer, "question_family_index": 12}


def test_clevr_questions_that_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        question("How many cubes are there?", "3", "scene", "filter_shape", "count"),
        question("Is there a cube?", "yes", "scene", "exist"),
        question("How many spheres?", "two", "scene", "count"),
        question("What is it?", "cube", "scene", "unique", "query_shape"),
    ]
    generated = question("How many things?", "0", "scene", "count")
    generated["program"] = [{"type": "scene"}, {"type": "count"}]
    file = written(folder / "CLEVR_trainA_questions.json", {"info": {}, "questions": [*asked, generated]})
    assert convert("clevr", file, folder / "out") == 0
    told = capsys.readouterr()
    assert [(row["problem"], row["solution"]) for row in rows(folder / "out")] == [
        ("How many cubes are there?", 3),
        ("How many things?", 0),
    ]
    assert "2 left out: it does not ask for a count" in told.out
    assert "questions[2].answer: is 'two', not a number, though its program counts" in told.err


def test_clevr_scenes_are_counted_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thing = {"shape": "cube", "color": "red", "material": "metal", "size": "small", "pixel_coords": [1, 2, 9.1]}
    scenes = [
        {"image_filename": "a.png", "image_index": 0, "split": "trainA", "objects": [thing] * 5, "relationships": {}},
        {"image_filename": "none.png", "image_index": 1, "split": "trainA", "objects": [thing]},
        {"image_filename": "b.png", "image_index": 2, "split": "trainA", "objects": None},
    ]
    file = written(folder / "CLEVR_trainA_scenes.json", {"info": {}, "scenes": scenes})
    assert convert("clevr", file, folder / "out") == 0
    told = capsys.readouterr()
    (row,) = rows(folder / "out")
    assert row["solution"] == 5 and row["problem"] == "How many objects are there in the image?"
    assert (
        "scenes[2].objects: is null, not a list of objects" in told.err and "1 left out: the image is not" in told.out
    )


def test_clevrs_test_split_has_no_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"image_index": 0, "question_index": 0, "image_filename": "a.png", "split": "test", "question": "How many?"}
    file = written(folder / "CLEVR_test_questions.json", {"info": {}, "questions": [asked]})
    assert convert("clevr", file, folder / "out") == 2
    assert "nothing was converted (1 left out: it has no answer, as all of a test split)" in capsys.readouterr().err
    assert convert("clevr", written(folder / "x.json", {"objects": []}), folder / "out") == 2
    assert "has no list of questions or scenes" in capsys.readouterr().err


def page(image: str, *turns: tuple[str, str]) -> dict[str, Any]:
    return {"image": image, "len": 12, "conversations": [{"from": who, "value": said} for who, said in turns]}


def test_pages_ask_in_their_own_words_for_all_their_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "FREEDOM OF INFORMATION\nWhat is on the page, ünd 数字."
    pages = [
        page("a.png", ("human", "<image>\nOCR this image: "), ("gpt", text)),
        page("b.png", ("user", "<image>\nRead it."), ("assistant", "one"), ("user", "Again"), ("assistant", "one!")),
        page("a.png", ("gpt", text), ("human", "<image>")),
        page("a.png", ("human", "<image>"), ("gpt", text)),
        page("a.png", ("human", "<image>\nOCR this image: "), ("gpt", " ")),
        page("a.png", ("human", "<image>\nOCR this image: ")),
    ]
    file = written(folder / "en_page_ocr.json", pages)
    assert convert("pages", file, folder / "out") == 0
    told = capsys.readouterr()
    found = rows(folder / "out")
    assert [(row["problem"], row["solution"]) for row in found] == [
        ("OCR this image:", text),
        ("Read it.", "one"),
        ("Again", "one!"),
    ]
    assert {row["task"] for row in found} == {"ocr"} and "4 bad annotations" in told.out
    for said in (
        ".conversations[0].from: is 'gpt', where human speaks",
        ".conversations[0].value: asks nothing",
        ".conversations[1].value: is empty",
        ".conversations: has 1 turns, not questions each with an answer",
    ):
        assert said in told.err
    assert convert("pages", file, folder / "out", "--name", "eval", "--question", "Read this page.") == 0
    assert {row["problem"] for row in rows(folder / "out", "eval")} == {"Read this page."}


def test_a_line_that_is_no_json_is_named_and_the_others_converted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(folder / "pages.jsonl", page("a.png", ("human", "<image>\nRead it."), ("gpt", "text")), [1, 2])
    file.write_text(file.read_text() + "{\n")
    assert convert("pages", file, folder / "out") == 0
    told = capsys.readouterr().err
    assert "line 2: is [1, 2], not an object" in told and "line 3: is not JSON" in told
    assert len(rows(folder / "out")) == 1
