"""A misspelt reward is one line before anything loads, asked of the real reward server."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from mmr1.errors import ConfigurationError
from mmr1.reward_names import check_names_of_own_server, check_reward_names
from mmr1_reward_server.app import create_app
from mmr1_reward_server.settings import Settings
from tests.models import small_config


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(workers=1)), log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def test_the_server_that_is_yet_to_start_is_asked_too(tmp_path: Path) -> None:
    check_names_of_own_server(small_config(tmp_path, rewards=["counting=1.0", "format"]))
    with pytest.raises(ConfigurationError, match=r"option 'rewards': .* no task 'couting'; did you mean 'counting'\?"):
        check_names_of_own_server(small_config(tmp_path, rewards=["couting"]))


def test_known_names_pass_and_a_misspelt_one_is_named_with_its_nearest(url: str, tmp_path: Path) -> None:
    check_reward_names(small_config(tmp_path, reward_url=url, rewards=["counting=1.0", "format"]))
    with pytest.raises(ConfigurationError, match=r"no task 'couting'; did you mean 'counting'\?"):
        check_reward_names(small_config(tmp_path, reward_url=url, rewards=["couting"]))
    with pytest.raises(ConfigurationError, match="option 'task': the reward server has no task 'zebra'"):
        check_reward_names(small_config(tmp_path, reward_url=url, task="zebra", eval_file="eval.json"))


def test_task_among_the_rewards_stands_for_every_task_of_the_data(url: str, tmp_path: Path) -> None:
    mixed = small_config(tmp_path, reward_url=url, rewards=["task", "format=0.2"], eval_file="eval.json")
    check_reward_names(mixed, {"counting", "grounding"}, {"ocr"})
    with pytest.raises(ConfigurationError, match=r"train_file .*: .* no task 'grouding'; did you mean 'grounding'\?"):
        check_reward_names(mixed, {"counting", "grouding"}, {"ocr"})
    with pytest.raises(ConfigurationError, match=r"eval_file eval.json: .* no task 'orc'; did you mean 'ocr'\?"):
        check_reward_names(mixed, {"counting"}, {"orc"})
    check_reward_names(small_config(tmp_path, reward_url=url, rewards=["counting"]), {"what nothing is scored by"})


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"grounding": {"score": "iou"}}, None),
        ({"grouding": {"score": "iou"}}, r"'grouding' is not among the rewards; did you mean 'grounding'\?"),
        ({"task": {"score": "iou"}}, "'task' is not among the rewards"),
        ({"grounding": {"scoer": "iou"}}, r"grounding has no param 'scoer'; did you mean 'score'\?"),
    ],
)
def test_params_are_of_rewards_and_known_to_them(
    params: dict[str, dict[str, str]], reason: str | None, url: str, tmp_path: Path
) -> None:
    config = small_config(tmp_path, reward_url=url, rewards=["task"], reward_params=params)
    if reason is None:
        check_reward_names(config, {"counting", "grounding"})
        return
    with pytest.raises(ConfigurationError, match=f"option 'reward_params': {reason}"):
        check_reward_names(config, {"counting", "grounding"})
