"""COCO's instances to detection: what is kept, what is left out, and what is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mmr1.convert.annotations import BadAnnotation, box
from mmr1_reward_server.rewards.detection import TrueObjects  # the form that the reward server takes
from tests.unit.convert.published import convert, pictures, rows, written

IMAGES = [
    {"id": 139, "file_name": "street.png", "width": 64, "height": 48, "license": 2, "coco_url": "http://nowhere/139"},
    {"id": 285, "file_name": "park.png", "width": 40, "height": 30, "license": 4},
    {"id": 632, "file_name": "crowd.png", "width": 64, "height": 64, "license": 1},
    {"id": 724, "file_name": "sky.png", "width": 20, "height": 20, "license": 1},
]
ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 1, "image_id": 139, "category_id": 1, "bbox": [10.25, 4.5, 20.0, 30.0], "area": 600.0, "iscrowd": 0},
    {"id": 2, "image_id": 139, "category_id": 18, "bbox": [50.0, 40.0, 14.4, 8.3], "area": 120.0, "iscrowd": 0},
    {"id": 3, "image_id": 285, "category_id": 18, "bbox": [0.0, 0.0, 40.0, 30.0], "area": 1200.0, "iscrowd": 0},
    {"id": 4, "image_id": 632, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81.0, "iscrowd": 0},
    {"id": 5, "image_id": 632, "category_id": 1, "bbox": [5, 5, 50, 50], "iscrowd": 1, "segmentation": {"counts": [9]}},
]
CATEGORIES = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog"}]
FILE = {"info": {"year": 2017}, "images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pictures(tmp_path / "images", street=(64, 48), park=(40, 30), crowd=(64, 64), sky=(20, 20))
    return written(tmp_path / "instances_train2017.json", FILE)


def changed(file: Path, part: str, index: int, **values: Any) -> Path:
    """The same file with one entry's values others; None takes one out."""
    document = copy.deepcopy(FILE)
    entry = document[part][index]  # type: ignore[index, call-overload]
    entry.update(values)
    for name in [name for name, value in values.items() if value is None]:
        del entry[name]
    return written(file, document)


def test_each_image_becomes_a_problem_with_all_its_objects(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("coco", file, file.parent / "out") == 0
    said = capsys.readouterr()
    street, park, sky = rows(file.parent / "out")
    assert street["solution"] == [
        {"bbox_2d": [10.25, 4.5, 30.25, 34.5], "label": "person"},
        {"bbox_2d": [50.0, 40.0, 64, 48], "label": "dog"},  # published boxes end a little beyond their image
    ]
    assert park["solution"] == [{"bbox_2d": [0, 0, 40, 30], "label": "dog"}] and sky["solution"] == []
    assert street["problem"].startswith("Detect every object of these categories: person, dog.")
    assert {row["task"] for row in (street, park, sky)} == {"detection"} and street["image"] == "images/street.png"
    for row in (street, park, sky):
        TypeAdapter(TrueObjects).validate_python(row["solution"])
    assert "3 problems on 3 images" in said.out and "1 left out: it has a crowd" in said.out and not said.err


def test_images_are_the_same_bytes_under_a_second_name(file: Path) -> None:
    out = file.parent / "out"
    convert("coco", file, out)
    source, placed = file.parent / "images" / "street.png", out / "images" / "street.png"
    assert placed.samefile(source) and not placed.is_symlink()
    assert not (out / "images" / "crowd.png").exists(), "an image without a problem"
    assert convert("coco", file, out, "--name", "eval") == 0 and len(rows(out, "eval")) == 3


def test_images_may_stay_where_they_are(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    assert convert("coco", file, out, "--images-stay") == 0
    assert f"set image_root: {file.parent / 'images'}" in capsys.readouterr().out
    assert '"image": "street.png"' in (out / "train.json").read_text() and not (out / "images").exists()


@pytest.mark.parametrize(("crowds", "boxes"), [("ignore", 2), ("keep", 2)])
def test_a_crowd_is_what_the_user_says(file: Path, crowds: str, boxes: int) -> None:
    convert("coco", file, file.parent / "out", "--crowds", crowds)
    (crowd,) = [row for row in rows(file.parent / "out") if row["image"].endswith("crowd.png")]
    assert len(crowd["solution"]) == boxes
    TypeAdapter(TrueObjects).validate_python(crowd["solution"])
    marks = [one.get("iscrowd") for one in crowd["solution"]]
    assert marks == ([None, 1] if crowds == "ignore" else [None, None])


def test_an_image_with_nothing_but_an_ignored_crowd_has_no_objects(file: Path) -> None:
    document = json.loads(file.read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] != 632 or one["iscrowd"]]
    file.write_text(json.dumps(document))
    kept, left_out = file.parent / "kept", file.parent / "left-out"
    convert("coco", file, kept, "--crowds", "ignore")
    assert [one["iscrowd"] for row in rows(kept) if row["image"].endswith("crowd.png") for one in row["solution"]] == [
        1
    ]
    convert("coco", file, left_out, "--crowds", "ignore", "--empty", "leave-out")
    assert not any(row["image"].endswith("crowd.png") for row in rows(left_out))


def test_only_some_categories_and_no_empty_images(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--categories", "dog", "--empty", "leave-out", "--question", "Find {categories}."]
    convert("coco", file, file.parent / "out", *options)
    found = rows(file.parent / "out")
    assert [[one["label"] for one in row["solution"]] for row in found] == [["dog"], ["dog"]]
    assert {row["problem"] for row in found} == {"Find dog."}
    # The crowd is one of persons, who are not asked for: that image has none of what is.
    assert "2 left out: it has no objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "index", "values", "said", "others"),
    [
        ("annotations", 0, {"bbox": [1, 2, 0, 5]}, "annotations[0].bbox: is [1, 2, 0, 5], which as [x, y, width", 2),
        ("annotations", 0, {"bbox": [1, 2, 3]}, "annotations[0].bbox: is [1, 2, 3], not a box of four numbers", 2),
        ("annotations", 0, {"bbox": [1, 2, 3, "4"]}, "annotations[0].bbox: is", 2),
        ("annotations", 0, {"bbox": [60, 2, 30, 5]}, "which reaches beyond its image of 64 x 48 pixels", 2),
        (
            "annotations",
            0,
            {"bbox": [3.001, 4, 0.003, 5]},
            "of which nothing is left in its image of 64 x 48 pixels",
            2,
        ),
        ("annotations", 0, {"bbox": [64.5, 4, 0.5, 5]}, "of which nothing is left in its image of 64 x 48 pixels", 2),
        ("annotations", 0, {"bbox": [1.5, 2, 10**400, 5]}, "not a box of four numbers", 2),
        ("annotations", 0, {"bbox": None}, "annotations[0].bbox: is missing", 2),
        ("annotations", 0, {"category_id": 7}, "annotations[0].category_id: is 7, no category's", 2),
        ("annotations", 0, {"category_id": True}, "annotations[0].category_id: is true, not an id", 2),
        ("annotations", 0, {"iscrowd": 2}, "annotations[0].iscrowd: is 2, not 0 or 1", 2),
        ("annotations", 2, {"image_id": 9}, "annotations[2].image_id: is 9, no image's", 3),
        ("annotations", 2, {"image_id": None}, "annotations[2].image_id: is None, no image's", 3),
        ("images", 0, {"width": 65}, "images[0].width: is 65, and the image has 64 x 48 pixels", 2),
        ("images", 0, {"file_name": " "}, "images[0].file_name: is empty", 2),
        ("images", 0, {"file_name": "../x.png"}, "lies outside the image root", 2),
        ("images", 1, {"id": 139}, "images[1].id: is 139, as that of another image", 2),
        ("categories", 1, {"id": 1}, "categories[1].id: is 1, as that of 'person'", 1),
    ],
)
def test_what_is_bad_is_named_by_file_and_key_and_its_image_left_out(
    file: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    index: int,
    values: dict[str, Any],
    said: str,
    others: int,
) -> None:
    changed(file, part, index, **values)
    assert convert("coco", file, file.parent / "out") == 0
    told = capsys.readouterr()
    assert f"{file}: " in told.err and said in told.err
    assert "named on standard error" in told.out
    assert len(rows(file.parent / "out")) == others


def test_every_bad_annotation_is_named_and_not_the_first_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = copy.deepcopy(FILE)
    for annotation in document["annotations"]:  # type: ignore[attr-defined]
        annotation["bbox"] = [0, 0, -1, 1]
    written(file, document)
    assert convert("coco", file, file.parent / "out") == 0
    told = capsys.readouterr()
    assert [f"annotations[{index}].bbox" in told.err for index in range(5)] == [True] * 5
    assert "5 bad annotations" in told.out and "3 left out: one of its annotations is bad" in told.out


def test_an_image_that_is_not_there_is_counted_and_one_that_is_none_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "images" / "park.png").unlink()
    (file.parent / "images" / "sky.png").write_text("no image")
    assert convert("coco", file, file.parent / "out") == 0
    told = capsys.readouterr()
    assert "1 left out: the image is not there" in told.out and "images[3]: image sky.png: is not one of" in told.err


def test_an_image_that_its_orientation_turns_is_of_another_size(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes were drawn on the pixels as they are stored; a model is shown them upright."""
    from PIL import Image

    image = Image.new("RGB", (64, 48))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file.parent / "images" / "street.png", exif=exif)
    convert("coco", file, file.parent / "out")
    assert "images[0].width: is 64, and the image has 48 x 64 pixels as it is shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "has no lists images, annotations, categories"),
        ('{"images": []}', "has no lists images, annotations, categories"),
        ('{"images": [], "annotations": [], "categories": []}', "nothing was converted (it is empty)"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file.write_text(content)
    assert convert("coco", file, file.parent / "out") == 2
    told = capsys.readouterr().err
    assert told.startswith("mmr1: error: ") and said in told and told.count("\n") == 1
    assert not (file.parent / "out" / "train.json").exists()


def test_categories_that_differ_only_in_case_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are compared without their case: one could not be told from the other."""
    document = copy.deepcopy(FILE)
    for id_, name in ((19, "Dog"), (20, "DOG"), (21, "Person"), (22, "cat")):
        document["categories"].append({"id": id_, "name": name})  # type: ignore[union-attr, attr-defined]
    out = file.parent / "out"
    assert convert("coco", written(file, document), out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "differ only in case" in line and "'person' and 'Person'; 'dog' and 'Dog' and 'DOG'; rename" in line
    assert not (out / "train.json").exists()
    assert convert("coco", file, out, "--categories", "dog,Person,cat") == 0


@pytest.mark.parametrize(
    ("format_", "known"),
    [("coco", "categories"), ("refcoco", "expression"), ("pixmo-count", "label"), ("clevr", ""), ("pages", "")],
)
def test_a_name_in_braces_that_stands_for_nothing_is_refused(
    format_: str, known: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("categroy", f" {known or 'label'} "):
        assert convert(format_, file, file.parent / "out", "--question", f"Find {{{wrong}}}.") == 2
        said = capsys.readouterr().err
        assert f"argument --question: {{{wrong}}} is not known; " in said
        assert (f"only {{{known}}} stands for anything" if known else "nothing in braces stands for anything") in said
    if format_ == "coco":
        asked = r'Find {categories}. Say {"label": 1}, {} and \boxed{it}.'
        assert convert(format_, file, file.parent / "out", "--question", asked) == 0
        assert rows(file.parent / "out")[0]["problem"] == asked.replace("{categories}", "person, dog")


def test_what_the_command_line_gets_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    assert convert("coco", file, out, "--categories", "cat") == 2
    assert "has no category 'cat'; it has person, dog" in capsys.readouterr().err
    assert convert("coco", file, out, images=file.parent / "nowhere") == 2
    assert "is not a folder" in capsys.readouterr().err
    assert convert("coco", file.parent / "none.json", out) == 2
    assert "No such file or directory; give a JSON object with images" in capsys.readouterr().err
    assert convert("yolo", file, out) == 2
    assert "invalid choice: 'yolo'" in capsys.readouterr().err
    (out / "images").mkdir(parents=True)
    pictures(out / "images", street=(1, 1))
    assert convert("coco", file, out) == 2
    assert "is another image than" in capsys.readouterr().err


SIDE = st.floats(-3, 70, allow_nan=False).map(lambda value: round(value, 3))


@settings(max_examples=300, deadline=None)
@given(st.tuples(SIDE, SIDE, SIDE, SIDE))
def test_a_box_lies_in_its_image_or_is_refused(value: tuple[float, ...]) -> None:
    try:
        x1, y1, x2, y2 = box({"bbox": list(value)}, "bbox", "a", (64, 48), is_xywh=True)
    except BadAnnotation:
        x, y, width, height = value
        is_plain = width > 0.01 and height > 0.01 and x >= 0 and y >= 0 and x + width <= 64 and y + height <= 48
        assert not is_plain
    else:
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48
        assert max(abs(x1 - value[0]), abs(y1 - value[1]), abs(x2 - value[0] - value[2])) <= 1.01
