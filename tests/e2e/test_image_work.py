"""What the engine does with a group's image: prepared beside the event loop, and encoded once for all completions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def found(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("image_work")
    command = [sys.executable, "-m", "tests.e2e.image_work", str(small_model), str(folder)]
    with (folder / "log").open("w") as log:
        code = subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, timeout=240).returncode
    assert code == 0, (folder / "log").read_text()[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_a_groups_image_is_encoded_once(found: dict[str, Any]) -> None:
    for group in found["completions"]:
        assert len({tuple(completion) for completion in group}) == 8, "these are not eight completions of their own"
    assert found["encoded"] == len(found["completions"]) == 3


def test_images_are_prepared_beside_the_event_loop(found: dict[str, Any]) -> None:
    """Preparing one takes a second here. The control shows that a loop that does it itself would be seen."""
    assert found["silence_in_the_loop"] > 1.0
    assert found["silence"] < 0.5


def test_an_image_is_made_ready_while_the_engine_starts(found: dict[str, Any]) -> None:
    """And what it has loaded is all that the first prompt with an image needs."""
    assert found["made_while_it_started"] == ["first image"]
    by_first_image, by_first_prompt = found["loaded"]
    assert by_first_image >= 1 and by_first_prompt == 0
