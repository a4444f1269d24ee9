"""Where others reach a process, and the key that it shows to the reward server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mmr1.config import load_config
from mmr1.credentials import reward_key
from mmr1.errors import ConfigurationError
from mmr1.local.plan import plan
from mmr1.reward_access import reward_client

REQUIRED = ["--model", "m", "--train_file", "t.json", "--num_steps", "1", "--per_device_batch_size", "8"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "127.0.0.1"),
        (["--host", "10.0.0.7"], "10.0.0.7"),
        (["--host", "0.0.0.0"], socket.gethostname()),
        (["--host", "0.0.0.0", "--advertise_host", "10.1.2.3"], "10.1.2.3"),
        (["--advertise_host", "node-7"], "node-7"),
    ],
)
def test_where_others_reach_a_process(options: list[str], expected: str) -> None:
    assert load_config(None, [*REQUIRED, *options]).reachable_host == expected


def test_an_address_may_come_from_the_environment_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMR1_ADVERTISE_HOST", "10.1.2.3")
    assert load_config(None, REQUIRED).reachable_host == "10.1.2.3"


def test_ipv6_is_refused_there_too() -> None:
    with pytest.raises(ConfigurationError, match=r"advertise_host.*IPv6"):
        load_config(None, [*REQUIRED, "--advertise_host", "::1"])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "reward.key"
    path.write_text("of-a-file\n")
    path.chmod(0o600)
    return path


def test_the_reward_servers_key_is_in_a_file_or_in_the_environment(key_file: Path) -> None:
    assert reward_key(None, {}) is None
    assert reward_key(key_file, {}) == "of-a-file"
    assert reward_key(None, {"MMR1_REWARD_API_KEY": "of-environment\n"}) == "of-environment"
    with pytest.raises(ConfigurationError, match="reward_key_file and MMR1_REWARD_API_KEY are both given"):
        reward_key(key_file, {"MMR1_REWARD_API_KEY": "another"})
    key_file.write_text("\n")
    with pytest.raises(ConfigurationError, match="holds nothing"):
        reward_key(key_file, {})


async def test_a_client_shows_the_key_of_the_file(key_file: Path) -> None:
    config = load_config(None, [*REQUIRED, "--reward_key_file", str(key_file)])
    async with reward_client(config, 1.0) as client:
        assert client._http.headers["authorization"] == "Bearer of-a-file"


def test_a_server_of_the_stacks_own_asks_for_it(key_file: Path) -> None:
    own = plan(load_config(None, [*REQUIRED, "--reward_key_file", str(key_file)]), {})
    assert own.reward is not None
    assert own.reward.processes[0].command[-2:] == ["--api-key-file", str(key_file)]
    without = plan(load_config(None, REQUIRED), {})
    assert without.reward is not None and "--api-key-file" not in without.reward.processes[0].command
