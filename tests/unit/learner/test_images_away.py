"""Where images are kept does not answer: a learner ends so that it is started again, and no row or group is blamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from mmr1.convert.pictures import Pictures
from mmr1.coordinates import ModelSpace
from mmr1.data_cli import main as data_command
from mmr1.dataset import train_problems
from mmr1.errors import ConfigurationError
from mmr1.image_files import LocalImages
from mmr1.images import ImageStore, UnreachableImageError
from mmr1.lifecycle import run_command
from mmr1.records import Problem, Prompt, PromptId
from mmr1_learner.batches import Batcher
from mmr1_learner.completion_details import CompletionDetails
from mmr1_learner.plan import StepPlan
from mmr1_learner.prompt_lengths import check_prompt_lengths
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.source import GroupSource
from mmr1_learner.supervised import command, loop
from tests.conftest import make_group, make_prompt
from tests.models import Letters, small_config

REASON = "cannot be read from https://host/photos (503)"
BOX = Problem(0, "Where is <box>[0, 0, 4, 4]</box>?", [1, 1, 2, 2], ("a.png",), "grounding")


class World:
    """A dataset of one row, and a model of which only the files matter."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.config = small_config(model, train_file=str(folder / "train.json"))
        self.folder = folder
        self.store = ImageStore(folder)
        self.prompts = PromptFactory(self.config, [BOX], ())

    def prompt(self) -> Prompt:
        return replace(make_prompt(0), images=(self.store.ref("a.png"),))

    def length(self) -> None:
        encoder = Mock()
        encoder.encode.return_value.token_ids = (1,)
        check_prompt_lengths(self.config, encoder, self.prompts, [BOX])

    def fed(self) -> None:
        self.prompts.make(PromptId("test", 0), BOX, self.prompts.sampling(1.0, None), 1)


@pytest.fixture
def world(small_model: Path, tmp_path: Path) -> World:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"problem": BOX.problem, "solution": BOX.solution, "image": "a.png", "task": BOX.task}
    (tmp_path / "train.json").write_text(json.dumps(row))
    return World(tmp_path, small_model)


@pytest.fixture
def away(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes the store of every process here unreachable."""

    def unreachable(_: LocalImages, path: str, *__: object) -> Any:
        raise UnreachableImageError(path, REASON)

    def go() -> None:
        monkeypatch.setattr(LocalImages, "read", unreachable)
        monkeypatch.setattr(LocalImages, "open", unreachable)

    return go


LOOKS: dict[str, Callable[[World], object]] = {
    "before a run": lambda world: train_problems(world.config),
    "the longest prompts": World.length,
    "a prompt that is fed": World.fed,
    "a question with a box": lambda world: ModelSpace(world.config, world.store).of(BOX),
    "a solution with a box": lambda world: ModelSpace(world.config, world.store).taught(BOX),
    "an evaluated prompt's size": lambda world: world.prompts.image_size(replace(make_prompt(0), images=PLACE)),
    "a conversion": lambda world: Pictures(world.folder).size("a.png", "images[0]"),
}
PLACE = (replace(make_prompt(0).images[0], path="a.png"),) if make_prompt(0).images else ()


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_away_is_said_to_be_away(world: World, away: Callable[[], None], look: str) -> None:
    LOOKS[look](world)
    away()
    with pytest.raises(UnreachableImageError, match=r"image a\.png: cannot be read from"):
        LOOKS[look](world)


def test_no_group_is_dropped_for_it(world: World, away: Callable[[], None]) -> None:
    group = make_group(world.prompt())
    source = SimpleNamespace(_store=world.store)
    plan = StepPlan.__new__(StepPlan)
    object.__setattr__(plan, "groups", (group,))
    encoder = Mock(image_token_id=2, pad_token_id=0)
    batcher = Batcher(world.config, encoder)
    away()
    with pytest.raises(UnreachableImageError):
        GroupSource._image_fault(source, group)  # type: ignore[arg-type]
    with pytest.raises(UnreachableImageError):
        batcher.encode(plan, [(SimpleNamespace(group=0),)])  # type: ignore[arg-type,list-item]


def test_a_size_that_could_not_be_read_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    details, prompt = CompletionDetails(Letters(), world.store), world.prompt()
    with monkeypatch.context() as patch:
        patch.setattr(LocalImages, "open", Mock(side_effect=UnreachableImageError("a.png", REASON)))
        assert details.of_prompt(prompt)["image_sizes"] == [None]
    assert details.of_prompt(prompt)["image_sizes"] == [[8, 8]]


def test_the_exit_code_is_one_that_is_started_again(
    world: World, away: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away()
    file = str(world.folder / "train.json")
    said = f"mmr1: error: image a.png: {REASON}; when it is back, the same command goes on\n"
    assert run_command(lambda: data_command(["validate", file])) == 1
    assert capsys.readouterr().err == said
    failed = Mock(side_effect=UnreachableImageError("a.png", REASON))
    monkeypatch.setattr(loop, "fine_tune", failed)
    for name in ("configure_logging", "set_environment"):  # both are of the whole process
        monkeypatch.setattr(command, name, Mock())
    monkeypatch.setenv("MASTER_PORT", "0")
    assert run_command(lambda: command._train(world.config)) == 1  # type: ignore[arg-type]
    assert capsys.readouterr().err == said
    assert run_command(Mock(side_effect=ConfigurationError("x"))) == 2
