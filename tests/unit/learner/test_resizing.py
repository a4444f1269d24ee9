"""The sizes that are computed here against transformers' real processors, for every spelling of their settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmr1.errors import ConfigurationError
from mmr1.resizing import Resize

KIND = {"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "temporal_patch_size": 2}
# As the published folders of the three families have it, with bounds that keep the test's images small, and others.
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"min_pixels": 3136, "max_pixels": 40_000, "patch_size": 14},
    "qwen2_5_vl": {
        "min_pixels": 3136,
        "max_pixels": 40_000,
        "patch_size": 14,
        "size": {"shortest_edge": 9, "longest_edge": 9},
    },
    "qwen3_vl": {"size": {"longest_edge": 65_536, "shortest_edge": 4096}, "patch_size": 16},
    "in its size by other names": {
        "size": {"max_pixels": 1, "min_pixels": 1},
        "min_pixels": 3136,
        "max_pixels": 40_000,
    },
    "one of each": {"size": {"shortest_edge": 4096, "longest_edge": 1}, "max_pixels": 50_176, "patch_size": 14},
    "nothing but its kind": {},
    "no resize": {"do_resize": False, "patch_size": 14},
}
SIZES = [
    (1, 1),
    (5, 900),
    (27, 29),
    (28, 28),
    (42, 70),
    (56, 56),
    (112, 84),
    (199, 1),
    (300, 200),
    (333, 77),
    (640, 480),
]
SIDES = st.integers(1, 6000)


def written(folder: Path, document: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder


def really(folder: Path, size: tuple[int, int], **bounds: int) -> tuple[int, int]:
    """The size at which the real processor cut an image into patches."""
    processor = AutoImageProcessor.from_pretrained(folder, **bounds)
    made = processor(images=[Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))], return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    return columns * processor.patch_size, rows * processor.patch_size


@pytest.mark.parametrize("name", SETTINGS)
def test_a_processor_resizes_as_its_folder_says_in_each_spelling(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path, {**KIND, **SETTINGS[name]})
    resize = Resize.of_model(folder, {})
    sizes = [(56, 84), (112, 28)] if not resize.enabled else SIZES
    assert [resize(size) for size in sizes] == [really(folder, size) for size in sizes]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "bounds", [{"min_pixels": 12_544}, {"max_pixels": 12_544}, {"min_pixels": 4096, "max_pixels": 8192}]
)
def test_the_runs_bounds_go_before_the_folders(tmp_path: Path, name: str, bounds: dict[str, int]) -> None:
    folder = written(tmp_path, {**KIND, **SETTINGS[name]})
    resize = Resize.of_model(folder, bounds)
    assert [resize(size) for size in SIZES] == [really(folder, size, **bounds) for size in SIZES]


def test_settings_within_the_processors_file_go_before_the_older_file(tmp_path: Path) -> None:
    folder = written(tmp_path, {**KIND, **SETTINGS["qwen2_vl"]})
    new = {**KIND, "patch_size": 16, "size": {"longest_edge": 16_384, "shortest_edge": 4096}}
    written(folder, {"processor_class": "Qwen3VLProcessor", "image_processor": new}, "processor_config.json")
    resize = Resize.of_model(folder, {})
    assert resize == Resize(32, 4096, 16_384) and [resize(s) for s in SIZES] == [really(folder, s) for s in SIZES]
    written(folder, {"processor_class": "Qwen2VLProcessor"}, "processor_config.json")
    assert Resize.of_model(folder, {}) == Resize(28, 3136, 40_000)


@settings(max_examples=500, deadline=None)
@given(SIDES, SIDES, st.sampled_from([28, 32]), st.integers(1, 2**16), st.integers(0, 2**24))
def test_any_size_becomes_what_transformers_makes_of_it(
    width: int, height: int, factor: int, low: int, more: int
) -> None:
    resize = Resize(factor, low, low + more)
    try:
        rows, columns = smart_resize(height, width, factor, low, low + more)
    except ValueError:
        with pytest.raises(ValueError, match="200 times"):
            resize((width, height))
    else:
        assert resize((width, height)) == (columns, rows)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"size": {"shortest_edge": 3136}}, "its size has no longest_edge.*set max_pixels"),
        ({"size": {"min_pixels": 1, "max_pixels": 2}}, "its size has no shortest_edge"),
        ({"min_pixels": -1}, "min_pixels is -1"),
        ({"patch_size": "14"}, "patch_size is '14'"),
    ],
)
def test_settings_that_resize_nothing_are_named(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Resize.of_model(written(tmp_path, {**KIND, **document}), {})


def test_a_folder_without_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no preprocessor_config\.json"):
        Resize.of_model(tmp_path, {})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Resize.of_model(tmp_path, {})
