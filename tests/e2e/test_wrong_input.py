"""Each wrong input to the real command: one line that names it, exit code 2, and no process started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.conftest import REPOSITORY

LONGEST_SECONDS = 20.0  # on a busy machine; an engine takes more to import alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory in which `mmr1 up run.yaml` would pass every check."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (28, 28)).save(tmp_path / "data" / "a.png")
    write_rows(tmp_path, {"problem": "How many?", "solution": 1, "image": "a.png"})
    (tmp_path / "model").mkdir()
    for path in (REPOSITORY / "examples/tiny_vlm").iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    return tmp_path


def write_rows(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "data" / "train.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


@pytest.fixture
def port_in_use() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def up(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    document = {
        "model": "model",
        "train_file": "data/train.json",
        "num_steps": 1,
        "per_device_batch_size": 8,
        "run_dir": "run",
        # Ports of no default, so that a run on this machine does not matter.
        "redis_port": 16390,
        "reward_port": 18390,
        "rollout_port": 15390,
        "learner_metrics_port": 19390,
        "learner_master_port": 12390,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document | options))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MMR1_")}
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "mmr1", "up", "run.yaml"],
        cwd=folder,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < LONGEST_SECONDS
    return result


def refuse(folder: Path, *words: str, **options: Any) -> None:
    result = up(folder, **options)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmr1: error: "), result.stderr
    for word in words:
        assert word in lines[0]
    assert result.stdout == ""
    assert not (folder / "run" / "logs").exists(), "a process was started"


def test_unknown_option(folder: Path) -> None:
    refuse(folder, "'num_step'", "did you mean 'num_steps'", num_step=3)


def test_batch_that_does_not_divide(folder: Path) -> None:
    refuse(folder, "per_device_batch_size does not divide", "nearest valid", per_device_batch_size=7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewards": ["couting=1.0"]}, ("option 'rewards'", "'couting'", "did you mean 'counting'")),
        ({"task": "couting", "eval_file": "data/train.json"}, ("option 'task'", "did you mean 'counting'")),
    ],
)
def test_a_reward_that_does_not_exist(folder: Path, options: dict[str, Any], words: tuple[str, ...]) -> None:
    refuse(folder, *words, **options)


def test_unknown_template(folder: Path) -> None:
    refuse(folder, "question_template", "'defualt'", "did you mean 'default'", question_template="defualt")


@pytest.mark.parametrize("model", ["modle", "./modle", "data/modle", "nobody/has-this-name"])
def test_model_that_does_not_exist(folder: Path, model: str) -> None:
    refuse(folder, repr(model), "model", model=model)


def break_weights(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(whole[:-1])


def empty_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").touch()


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_weights, "model.safetensors"),
        (empty_weights, "(0 bytes) is cut or damaged"),
        (without("model.safetensors"), "has no weights"),
        (without("tokenizer.json"), "has no tokenizer"),
        (without("preprocessor_config.json"), "has no image processor"),
        (without("chat_template.jinja"), "no chat template"),
        (without("config.json"), "config.json"),
    ],
)
def test_a_model_folder_that_is_not_whole(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder / "model")
    refuse(folder, "model", words)


def test_malformed_json(folder: Path) -> None:
    (folder / "data" / "train.json").write_text('[\n{"problem": "How many?", "solution": 1,\n"image": }]\n')
    refuse(folder, "data/train.json:", "not JSON")


def test_missing_key(folder: Path) -> None:
    write_rows(folder, {"problem": "How many?", "solution": 1, "image": "a.png"}, {"problem": "?", "image": "a.png"})
    refuse(folder, "data/train.json:3", "key 'solution' is missing", "answer_key")


Breaker = Callable[[Path], str]


def missing(folder: Path) -> str:
    return "b.png"


def unreadable(folder: Path) -> str:
    (folder / "data" / "b.png").write_bytes(b"no image")
    return "b.png"


def outside(folder: Path) -> str:
    Image.new("RGB", (28, 28)).save(folder / "secret.png")
    return "../secret.png"


@pytest.mark.parametrize(
    ("breaker", "words"),
    [(missing, "does not exist"), (unreadable, "is not one of PNG"), (outside, "outside the image root")],
)
def test_images(folder: Path, breaker: Breaker, words: str) -> None:
    write_rows(folder, {"problem": "How many?", "solution": 1, "image": breaker(folder)})
    refuse(folder, "data/train.json:2: key 'image'", words)


@pytest.mark.parametrize("option", ["redis_port", "reward_port", "rollout_port", "learner_metrics_port"])
def test_a_port_in_use_is_named_with_its_holder(folder: Path, port_in_use: int, option: str) -> None:
    refuse(folder, f"port {port_in_use}", f"in use by pid {os.getpid()}", f"--{option}", **{option: port_in_use})


def test_an_address_that_services_cannot_use(folder: Path) -> None:
    refuse(folder, "'host'", "IPv6", "IPv4", host="::1")


def test_two_services_on_one_port(folder: Path) -> None:
    refuse(folder, "port 18390 is meant for both", "--redis_port", "--reward_port", redis_port=18390)


def test_redis_down(folder: Path) -> None:
    refuse(folder, "redis_url", "127.0.0.1:1/0", "start it", redis_url="redis://:secret@127.0.0.1:1/0")
    assert "secret" not in up(folder, redis_url="redis://:secret@127.0.0.1:1/0").stderr


def test_reward_server_down(folder: Path) -> None:
    refuse(folder, "reward_url http://127.0.0.1:1", "start it", reward_url="http://127.0.0.1:1")


def test_run_dir_that_cannot_be_made(folder: Path) -> None:
    result = up(folder, run_dir="run.yaml/run")
    assert result.returncode == 2
    assert "run_dir run.yaml/run" in result.stderr


def test_run_dir_in_use(folder: Path) -> None:
    from mmr1.local.run_lock import run_lock

    with run_lock(folder / "run"):
        refuse(folder, "run_dir run is in use", f"pid {os.getpid()}")
