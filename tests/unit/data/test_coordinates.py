"""Boxes from pixels to what a model says and back by the reward server, and what is said when that cannot be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmr1.config import RunConfig
from mmr1.coordinates import Coordinates, ModelSpace, Space, check_coordinates, wrong_boxes
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Problem, RewardSpec
from mmr1.resizing import Resize
from mmr1_reward_server.boxes import iou
from mmr1_reward_server.coordinates import to_solution_space
from mmr1_reward_server.rewards.detection import DetectionParams
from mmr1_reward_server.rewards.grounding import GroundingParams
from tests.models import small_config

QWEN = Resize(28, 3136, 12_845_056)
SPACES = [
    Coordinates("absolute", QWEN),
    Coordinates("absolute", Resize(28, 3136, 50_176)),
    Coordinates("absolute"),
    Coordinates("normalized_1000"),
    Coordinates("normalized_1"),
]
SIZES = st.tuples(st.integers(8, 4000), st.integers(8, 4000))


def model(folder: Path, model_type: str, **processor: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def config(folder: Path, **options: Any) -> RunConfig:
    return small_config(folder, image_root=str(folder.parent), **options)


def scored(coordinates: Coordinates, said: list[float], true: list[float], size: tuple[int, int]) -> float:
    """The IoU that the reward server finds between a response's box and the solution."""
    params = GroundingParams.model_validate(json.loads(json.dumps(coordinates.params(size))))
    x, y = to_solution_space(params, size)
    return iou((said[0] * x, said[1] * y, said[2] * x, said[3] * y), (true[0], true[1], true[2], true[3]))


@settings(max_examples=400, deadline=None)
@given(SIZES, st.sampled_from(SPACES), st.data())
def test_a_box_comes_back_from_the_model_as_it_went(size: tuple[int, int], coordinates: Coordinates, data: Any) -> None:
    """To rounding: no side is further off than half a unit of the model's space, and the IoU follows from that."""
    assume(coordinates.resize is None or max(size) <= 200 * min(size))
    corners = [
        sorted(data.draw(st.lists(st.integers(0, side * 4), min_size=2, max_size=2, unique=True))) for side in size
    ]
    x1, x2, y1, y2 = (value / 4 for pair in corners for value in pair)
    true = [x1, y1, x2, y2]
    said = coordinates.box(true, size)
    assert said[0] < said[2] and said[1] < said[3], "an empty box could not be found"
    extent = coordinates.box([0, 0, *size], size)[2:]
    unit = 1e-4 if coordinates.space == "normalized_1" else 1.0
    pixels = [unit * side / end for side, end in zip(size, extent, strict=True)]  # of the original, in one unit
    back = [value * size[axis % 2] / extent[axis % 2] for axis, value in enumerate(said)]
    is_large = x2 - x1 >= pixels[0] and y2 - y1 >= pixels[1]
    allowed = 0.5 if is_large else 1.0
    assert all(
        abs(a - b) <= allowed * pixels[i % 2] * (1 + 1e-9) for i, (a, b) in enumerate(zip(back, true, strict=True))
    )
    least = 1.0
    for side, one in ((x2 - x1, pixels[0]), (y2 - y1, pixels[1])):
        least *= max(0.0, side - 2 * allowed * one) / (side + 2 * allowed * one)
    assert scored(coordinates, said, true, size) >= least - 1e-9


@settings(max_examples=200, deadline=None)
@given(SIZES, st.sampled_from(SPACES[:3]))
def test_a_box_that_falls_on_whole_numbers_comes_back_exactly(size: tuple[int, int], coordinates: Coordinates) -> None:
    assume(max(size) <= 200 * min(size))
    whole = [0.0, 0.0, float(size[0]), float(size[1])]
    assert scored(coordinates, coordinates.box(whole, size), whole, size) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("model_type", "options", "space", "box", "params"),
    [
        ("qwen2_5_vl", {}, "absolute", [10, 21, 98, 105], {"resized_size": [196, 112]}),
        ("qwen2_5_vl", {"max_pixels": 8000}, "absolute", [6, 10, 56, 52], {"resized_size": [112, 56]}),
        ("qwen2_vl", {}, "normalized_1000", [50, 188, 500, 938], {}),
        ("qwen3_vl", {"max_pixels": 8000}, "normalized_1000", [50, 188, 500, 938], {}),
        ("qwen2_vl", {"coordinates": "absolute"}, "absolute", [10, 21, 98, 105], {"resized_size": [196, 112]}),
        ("qwen2_5_vl", {"coordinates": "normalized_1"}, "normalized_1", [0.05, 0.1875, 0.5, 0.9375], {}),
        ("llava", {"coordinates": "absolute"}, "absolute", [10, 22, 100, 112], {}),
        ("paligemma", {"coordinates": "normalized_1000"}, "normalized_1000", [50, 188, 500, 938], {}),
    ],
)
def test_each_family_is_asked_and_scored_its_own_way(
    tmp_path: Path, model_type: str, options: dict[str, Any], space: Space, box: list[float], params: dict[str, Any]
) -> None:
    folder = model(tmp_path / "model", model_type, min_pixels=3136, max_pixels=200_704)
    chosen = config(folder, **options)
    size = (200, 120)
    assert Coordinates.of(chosen).box([10, 22.5, 100, 112.5], size) == box
    assert Coordinates.of(chosen).params(size) == {"response_space": space, **params}


@pytest.mark.parametrize("model_type", ["llava", "internvl", "paligemma"])
def test_a_family_whose_way_is_not_known_needs_a_choice(tmp_path: Path, model_type: str) -> None:
    folder = model(tmp_path / "model", model_type)
    with pytest.raises(ConfigurationError, match=f"how a {model_type} says boxes is not known.*set coordinates to"):
        Coordinates.of(config(folder))
    check_coordinates(config(folder), ["counting"])
    for chosen, tasks, asks in (
        (config(folder), ["counting", "grounding"], False),
        (config(folder, rewards=["detection"]), [], False),
        (config(folder), ["counting"], True),
    ):
        with pytest.raises(ConfigurationError, match="set coordinates to"):
            check_coordinates(chosen, tasks, asks=asks)
    check_coordinates(config(tmp_path / "not" / "here"), ["grounding"])  # a model that is still on the hub


@pytest.mark.parametrize(
    ("solution", "said"),
    [
        ([10, 22.5, 100, 112.5], [50, 188, 500, 938]),
        ("[10, 22.5, 100, 112.5]", [50, 188, 500, 938]),
        ([[10, 22.5, 100, 112.5]], [[50, 188, 500, 938]]),
        ([], []),
        (
            [{"bbox_2d": [0, 0, 200, 120], "label": "7"}, {"bbox": [0, 0, 100, 60], "label": "3"}],
            [{"bbox_2d": [0, 0, 1000, 1000], "label": "7"}, {"bbox": [0, 0, 500, 500], "label": "3"}],
        ),
    ],
)
def test_a_solution_keeps_its_form(solution: Any, said: Any) -> None:
    assert Coordinates("normalized_1000").solution(solution, (200, 120)) == said
    params = {**Coordinates("normalized_1000").params((200, 120)), "score": "f1"}
    assert DetectionParams.model_validate(params).response_space == "normalized_1000"


@pytest.mark.parametrize(
    "solution",
    ["the cup", 7, [1, 2, 3], [{"label": "7"}], [{"bbox": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]}], [[1, 2]], {}],
)
def test_a_solution_that_is_no_box_is_named(tmp_path: Path, solution: Any) -> None:
    folder = model(tmp_path / "model", "qwen2_vl")
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    space = ModelSpace(config(folder), ImageStore(tmp_path))
    problem = Problem(4, "All?", solution, ("a.png",), "detection")
    with pytest.raises(
        ConfigurationError, match=r"problem 4 \(detection, image a\.png\): its solution or its image"
    ) as caught:
        space.taught(problem)
    assert "\n" not in str(caught.value)
    assert space.of(problem) == (problem, ()), "what is not taught is for the rewards to understand"


def test_a_crowd_is_not_taught_and_is_looked_at() -> None:
    crowd = {"bbox_2d": [0, 0, 50, 50], "label": "cup", "iscrowd": 1}
    cup = {"bbox_2d": [10, 20, 30, 40], "label": "cup"}
    space = Coordinates("normalized_1000")
    said = [{"bbox_2d": [100, 200, 300, 400], "label": "cup"}]
    assert space.solution([crowd, {**cup, "iscrowd": 0}], (100, 100)) == said
    assert space.solution(json.dumps([cup, crowd]), (100, 100)) == said
    assert space.solution([crowd], (100, 100)) == []
    bad = wrong_boxes("All?", [cup, {**crowd, "bbox_2d": [0, 0]}], "detection", ("problem", "solution"))
    assert bad is not None and "key 'solution'" in bad


@pytest.mark.parametrize("space", SPACES)
def test_a_number_beyond_all_images_is_no_crash(space: Coordinates) -> None:
    with pytest.raises(ValueError, match="holds a box with a number that is too large"):
        space.solution([0, 0, 10**400, 4], (40, 30))
    with pytest.raises(ValueError, match="holds a box with a number that is too large"):
        space.text(f"<box>[0, 0, {'9' * 400}, 4]</box>", (40, 30))


def test_an_image_that_the_processor_refuses_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "qwen2_5_vl")
    Image.new("L", (900, 4)).save(tmp_path / "a.png")
    with pytest.raises(ConfigurationError, match="has 900 x 4 pixels: one side is more than 200 times"):
        ModelSpace(config(folder), ImageStore(tmp_path)).taught(Problem(0, "?", [1, 1, 2, 2], ("a.png",), "grounding"))


def test_boxes_in_a_question_are_said_as_the_model_says_them(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "qwen2_vl")
    Image.new("L", (200, 120)).save(tmp_path / "a.png")
    asked = "Read <box>[10, 22.5, 100, 112.5]</box>, not <box>[[1, 2, 3, 4]]</box> or [1, 2, 3, 4] or <box>."
    problem = Problem(0, asked, "7", ("a.png",), "ocr")
    found, rewards = ModelSpace(config(folder), ImageStore(tmp_path)).of(problem, (RewardSpec("ocr"),))
    assert found.problem == "Read [50, 188, 500, 938], not <box>[[1, 2, 3, 4]]</box> or [1, 2, 3, 4] or <box>."
    assert found.solution == "7" and rewards == (RewardSpec("ocr"),)


def test_rewards_carry_the_space_and_what_the_user_says_goes_before(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "qwen2_5_vl")
    Image.new("L", (200, 120)).save(tmp_path / "a.png")
    given_ = (
        RewardSpec("grounding", 1.0, {"score": "giou"}),
        RewardSpec("format", 0.2),
        RewardSpec("detection", 1.0, {"response_space": "normalized_1"}),
    )
    problem = Problem(0, "Where?", [10, 22.5, 100, 112.5], ("a.png",), "grounding")
    _, (grounding, format_, detection) = ModelSpace(config(folder), ImageStore(tmp_path)).of(problem, given_)
    assert grounding.params == {"score": "giou", "response_space": "absolute", "resized_size": [196, 112]}
    assert format_ == given_[1] and detection.params["response_space"] == "normalized_1"


def test_what_is_not_about_boxes_opens_no_image_and_no_model(tmp_path: Path) -> None:
    space = ModelSpace(config(tmp_path / "none"), ImageStore(tmp_path))
    problem = Problem(0, "How many?", 3, ("none.png",), "counting")
    assert space.of(problem, (RewardSpec("counting"),)) == (problem, (RewardSpec("counting"),))
    boxes = Problem(0, "Where?", [1, 1, 2, 2], ("none.png",), "grounding")
    assert space.of(boxes, (RewardSpec("format"),)) == (boxes, (RewardSpec("format"),)), "no reward is about its boxes"
    for look in (lambda: space.of(boxes, (RewardSpec("grounding"),)), lambda: space.taught(boxes)):
        with pytest.raises(ConfigurationError, match=r"image none\.png: does not exist"):
            look()
    without = Problem(0, "Where?", [1, 1, 2, 2], (), "grounding")
    assert space.of(without, (RewardSpec("grounding"),)) == (without, (RewardSpec("grounding"),))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (60, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.tiff", "a.webp"):
        image.save(tmp_path / name, exif=exif)
        store = ImageStore(tmp_path)
        assert store.size(name) == store.open(store.ref(name)).size
