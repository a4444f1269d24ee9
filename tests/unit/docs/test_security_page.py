"""docs/security.md prints what the program prints, its commands run, and its configurations load."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from mmr1.config import RunConfig, load_config
from mmr1.credentials import rollout_tokens
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_redis
from mmr1.redis_access import RedisAccess
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import RolloutClient
from mmr1.tls import files
from mmr1_rollout_server.metrics import Metrics
from tests.certificates import authority
from tests.models import small_config
from tests.redis_servers import behind_tls, running_redis

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
REQUIRED = ["--model", "m", "--train_file", "t.json", "--num_steps", "1", "--per_device_batch_size", "8"]


class TurnsAway(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What a rollout server without our token does."""

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        def refuse(request: bytes, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)


def turned_away(token: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[TurnsAway()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        RolloutClient(f"127.0.0.1:{port}", "test", 1, RolloutAccess(token)).status(5.0)
    finally:
        server.stop(0)


def behind_a_tls_server(call: Callable[[int], object]) -> None:
    made = authority(Path("ca"))
    with running_redis(Path.cwd()) as (_, port), behind_tls(port, made.sign("server", "IP:127.0.0.1")) as tls_port:
        call(tls_port)


def wrong_password() -> None:
    with running_redis(Path.cwd(), "--requirepass", "right") as (_, port):
        check_redis(RedisAccess(f"redis://127.0.0.1:{port}/0", "wrong"))


def redis_without_tls() -> None:
    with pytest.MonkeyPatch.context() as patch, running_redis(Path.cwd()) as (_, port):
        patch.setattr("mmr1.preflight.REMOTE_SECONDS", 1.0)
        check_redis(RedisAccess(f"rediss://127.0.0.1:{port}/0", tls=files()))


def token_file(content: str) -> Path:
    Path("run.token").write_text(content)
    return Path("run.token")


def loaded(*arguments: str) -> RunConfig:
    return load_config(None, [*REQUIRED, *arguments])


CASES: dict[str, Callable[[], object]] = {
    "wrong token": lambda: turned_away("a-token-that-is-wrong"),
    "no token": lambda: turned_away(None),
    "rollout server with TLS": lambda: behind_a_tls_server(
        lambda port: RolloutClient(f"127.0.0.1:{port}", "test", 1).status(5.0)
    ),
    "no token file": lambda: rollout_tokens(Path("run.token"), {}),
    "short token": lambda: rollout_tokens(token_file("short\n"), {}),
    "half a pair": lambda: loaded("--rollout_tls_cert", "a.pem"),
    "empty variable": lambda: rollout_tokens(None, {"MMR1_ROLLOUT_TOKEN": ""}),
    "password in an argument": lambda: loaded("--redis_url", "redis://:secret@127.0.0.1/0"),
    "password in the reward server's URL": lambda: loaded("--reward_url", "http://user:secret@reward.example:8390"),
    "wrong password": wrong_password,
    "Redis with TLS": lambda: behind_a_tls_server(lambda port: check_redis(f"redis://127.0.0.1:{port}/0")),
    "Redis without TLS": redis_without_tls,
}


@pytest.mark.parametrize("case", CASES)
def test_page_prints_what_the_program_prints(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        CASES[case]()
    line = _stable(f"mmr1: error: {raised.value}")
    assert line in {_stable(shown.strip()) for shown in PAGE.splitlines()}, line


def test_every_line_of_the_page_has_its_case() -> None:
    assert len(re.findall("^    mmr1: error: ", PAGE, re.MULTILINE)) == len(CASES)


def test_the_commands_of_the_page_make_what_they_say(tmp_path: Path) -> None:
    commands = [
        line.strip() for line in PAGE.splitlines() if line.startswith(("    openssl", "    printf", "    chmod"))
    ]
    assert len(commands) == 5
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, capture_output=True)
    assert len(rollout_tokens(tmp_path / "run.token", {})) == 1
    assert (tmp_path / "run.token").stat().st_mode & 0o077 == 0
    made = files(
        ca=("ca", tmp_path / "ca.pem"),
        certificate=("certificate", tmp_path / "rollout.pem"),
        key=("key", tmp_path / "rollout.key"),
    )
    assert made.read_pair() is not None and made.context() is not None
    shown = subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.pem", "-verify_hostname", "rollout.example", "rollout.pem"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.strip() == "rollout.pem: OK", shown.stderr


def test_the_configurations_of_the_page_are_valid(tmp_path: Path) -> None:
    found = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 2
    for document in found:
        small_config(tmp_path, **yaml.safe_load(document))


def test_the_page_names_options_and_metrics_that_exist() -> None:
    named = set(re.findall(r"`((?:redis|rollout|reward)_[a-z_]+)`", PAGE))
    assert len(named) > 12
    assert named <= RunConfig.model_fields.keys()
    failures = (ROOT / "docs" / "failures.md").read_text()
    exported = {metric.name for metric in Metrics().registry.collect()}
    assert set(re.findall(r"`(mmr1_rollout_reward_[a-z_]+)`", failures)) <= exported


def _stable(line: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d{4,5}", "127.0.0.1:PORT", line)
