"""What reaches the engine through the environment, and what is found wrong before it is imported."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1_rollout_server import environment, preflight
from tests.conftest import REPOSITORY, free_port


def config(folder: Path, **options: Any) -> RunConfig:
    return RunConfig(
        **{"model": str(folder), "train_file": folder / "t.json", "num_steps": 1, "per_device_batch_size": 8, **options}
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for path in (REPOSITORY / "examples/tiny_vlm").iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_one_number_of_threads_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "64", "VLLM_LOGGING_LEVEL": "DEBUG"})
    environment.apply(config(tmp_path, rollout_threads=3, kv_cache_gib=2))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_a_sound_configuration_passes(model: Path) -> None:
    preflight.check(config(model), "rollout-0", free_port(), free_port())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "/nowhere"}, "/nowhere"),
        ({"image_root": "/nowhere"}, "image_root"),
        ({"redis_url": "http://x"}, "redis_url"),
        ({"reward_url": "unix:/x"}, "reward_url"),
    ],
)
def test_what_is_wrong_is_named(model: Path, options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        preflight.check(config(model, **options), "rollout-0", free_port(), free_port())


def test_a_port_in_use_is_named_with_its_option(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"{port}.*learner_metrics_port"):
            preflight.check(config(model), "rollout-0", free_port(), port)
