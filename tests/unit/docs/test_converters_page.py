"""docs/converters.md: each command that it shows is run on files of the form that it names, and prints what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmr1.config import RunConfig
from mmr1.data_cli import main
from mmr1.families import FAMILIES
from tests.unit.convert import test_convert_coco as coco
from tests.unit.convert import test_convert_others as others
from tests.unit.convert.published import lines, pictures, written

PAGE = Path(__file__).resolve().parents[3] / "docs" / "converters.md"
TEXT = PAGE.read_text()
COMMANDS = re.findall(r"^    \.venv/bin/mmr1 data (.+)\n((?:    (?!\.venv).+\n)*)", TEXT, re.MULTILINE)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page names, in the form in which they are published."""
    monkeypatch.chdir(tmp_path)
    pictures(Path("coco/val2017"), street=(64, 48), park=(40, 30), crowd=(64, 64), sky=(20, 20))
    written(Path("coco/annotations/instances_val2017.json"), coco.FILE)
    images = pictures(Path("coco/train2014"), a=(64, 48), b=(40, 30))
    written(Path("refcoco/instances.json"), others.INSTANCES)
    written(Path("refcoco/refs(unc).json"), others.REFS)
    row = {
        "img_path": "a.png",
        "expression": "lady in blue",
        "bbox": [10.4, 6.0, 30.5, 36.1],
        "height": 48,
        "width": 64,
    }
    lines(Path("refcoco/REC_refcocog_umd_val.jsonl"), row)
    pictures(Path("pixmo/images"), a=(64, 48))
    counted = others.counted(Path("pixmo"), "a.png", "people", 4)
    lines(Path("pixmo/train.jsonl"), counted, {**counted, "image_url": "https://x/gone.jpg", "image_sha256": "0" * 64})
    pictures(Path("CLEVR_CoGenT_v1.0/images/trainA"), a=(64, 48))
    asked = [
        others.question("How many cubes are there?", "3", "scene", "filter_shape", "count"),
        others.question("Is there a cube?", "yes", "scene", "exist"),
    ]
    written(Path("CLEVR_CoGenT_v1.0/questions/CLEVR_trainA_questions.json"), {"questions": asked})
    pictures(Path("focus_benchmark_test/en_pdf_png"), en_1=(64, 48))
    page = others.page("en_1.png", ("human", "<image>\nOCR this image: "), ("gpt", "FREEDOM OF INFORMATION"))
    written(Path("focus_benchmark_test/en_page_ocr.json"), [page])
    assert images.is_dir()


def test_every_command_prints_what_the_page_shows(published: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) >= 7
    for command, shown in COMMANDS:
        assert main(shlex.split(command)) == 0, command
        told = capsys.readouterr().out.splitlines()
        assert told[: shown.count("\n")] == [line.removeprefix("    ") for line in shown.splitlines()], command


def test_every_format_is_there() -> None:
    assert {command.split()[1] for command, _ in COMMANDS if command.startswith("convert")} == {
        "coco",
        "refcoco",
        "pixmo-count",
        "clevr",
        "pages",
    }


def test_the_families_of_the_page_are_those_that_are_known() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE))
    assert said == {name: family.coordinates for name, family in FAMILIES.items() if family.coordinates}


def test_the_options_that_it_names_are_real() -> None:
    for name in ("coordinates", "image_root", "image_cache", "image_cache_gib", "min_pixels", "max_pixels"):
        assert f"`{name}`" in TEXT and name in RunConfig.model_fields
