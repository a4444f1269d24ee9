"""The fingerprint of a processor: equal for equal ones, and each way of differing has a name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen2VLImageProcessor

from mmr1 import preprocessing
from mmr1.errors import ConfigurationError
from mmr1.preprocessing import compare, fingerprint


def processor(**options: Any) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(**{"min_pixels": 56 * 56, "max_pixels": 112 * 112, **options})


def test_equal_processors_have_equal_facts() -> None:
    first, second = fingerprint(processor()), fingerprint(processor())
    assert first == second and all(isinstance(value, str) for value in first.values())
    compare(first, second, "rollout-0")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"max_pixels": 84 * 84}, {"size", "settings", "pixels"}),
        ({"image_mean": [0.5, 0.5, 0.5]}, {"settings", "pixels"}),
        ({"resample": 2}, {"settings", "pixels"}),
    ],
)
def test_other_settings_show_in_facts_and_pixels(options: dict[str, Any], facts: set[str]) -> None:
    one, other = fingerprint(processor()), fingerprint(processor(**options))
    assert {name for name in one if one[name] != other[name]} == facts
    with pytest.raises(
        ConfigurationError, match="rollout-1 and the learner prepare images differently: pixels"
    ) as error:
        compare(one, other, "rollout-1")
    assert all(name in str(error.value) for name in facts) and "\n" not in str(error.value)


def test_another_version_of_a_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = fingerprint(processor())
    monkeypatch.setattr(preprocessing, "version", lambda library: "0.1+cpu" if library == "pillow" else here[library])
    there = fingerprint(processor())
    assert there == {**here, "pillow": "0.1"}
    with pytest.raises(ConfigurationError, match=rf"differently: pillow 0\.1 there, {here['pillow']} here; give both"):
        compare(here, there, "rollout-0")


def test_a_server_without_a_fingerprint_is_not_trusted() -> None:
    with pytest.raises(ConfigurationError, match="pixels None there"):
        compare(fingerprint(processor()), {}, "rollout-0")
