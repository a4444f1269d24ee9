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
