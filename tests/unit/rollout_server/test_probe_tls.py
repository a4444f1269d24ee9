"""`mmr1 probe` with TLS: what a health check inside a rollout server's container can ask, with the server's own files.

The real gRPC server, over real sockets, without an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from mmr1.cli import main
from mmr1.config import save_config
from mmr1.local.readiness import ACCEPTS_WEIGHTS
from mmr1_rollout_server.server import Server
from tests.certificates import Authority, authority
from tests.conftest import free_port
from tests.models import small_config

NAME = "rollout.local"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The servers' certificate holds no address of this machine, as one for all servers does."""
    made = authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("server", f"DNS:{NAME}")
    made.sign("learner")
    return made


def options(ours: Authority, mutual: bool) -> dict[str, Any]:
    of_server = {"rollout_tls_cert": ours.folder / "server.pem", "rollout_tls_key": ours.folder / "server.key"}
    of_caller = {"rollout_tls_ca": ours.folder / "elsewhere.pem", "rollout_tls_name": NAME}  # a file that is not here
    if mutual:
        of_caller["rollout_client_cert"] = of_caller["rollout_client_key"] = ours.folder / "elsewhere.pem"
        of_server["rollout_tls_client_ca"] = ours.ca
    return {**of_server, **of_caller}


@contextlib.asynccontextmanager
async def loading(folder: Path, **of_run: Any) -> AsyncIterator[tuple[str, str]]:
    """A server that accepts weights and holds none yet: its address, and the file it was started with."""
    config = small_config(folder, **of_run)
    save_config(config, folder / "run.yaml")
    server = Server(config, "rollout-0", free_port(), free_port())
    await server._listen()
    await server.health.set(ACCEPTS_WEIGHTS, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield f"127.0.0.1:{server.port}", str(folder / "run.yaml")
    finally:
        await server.grpc.stop(0)


async def probe(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["probe", *arguments])


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_server_is_asked_with_the_files_that_it_reads_itself(
    tmp_path: Path, ours: Authority, mutual: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with loading(tmp_path, **options(ours, mutual)) as (address, config):
        assert await probe("rollout", address, "--config", config) == 0
        assert await probe("alive", address, "--config", config) == 0
        assert await probe("serving", address, "--config", config) == 1
        assert capsys.readouterr().err == "not ready\n", "no word of TLS, which is well"
        assert await probe("rollout", address) == 1
        assert "it speaks TLS and we do not; give --config" in capsys.readouterr().err


async def test_the_options_may_come_from_the_servers_environment(
    tmp_path: Path, ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loading(tmp_path, **options(ours, True)) as (address, _):
        bare = tmp_path / "bare.yaml"
        save_config(small_config(tmp_path), bare)
        bare.write_text("".join(line for line in bare.read_text().splitlines(True) if "rollout_" not in line))
        assert await probe("rollout", address, "--config", str(bare)) == 1
        for name, value in options(ours, True).items():
            monkeypatch.setenv(f"MMR1_{name.upper()}", str(value))
        assert await probe("rollout", address, "--config", str(bare)) == 0


async def test_a_certificate_for_the_address_that_others_use_is_enough(tmp_path: Path, ours: Authority) -> None:
    given = {**options(ours, False), "rollout_tls_name": None, "host": "0.0.0.0"}
    async with loading(tmp_path, **given, advertise_host=NAME) as (address, config):
        assert await probe("rollout", address, "--config", config) == 0


async def test_who_is_not_let_in_says_why(tmp_path: Path, ours: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    """Callers' certificates are another CA's, and the server's own is none of those."""
    strangers = authority(tmp_path / "strangers")
    given = {**options(ours, True), "rollout_tls_client_ca": strangers.ca}
    async with loading(tmp_path, **given) as (address, config):
        assert await probe("alive", address, "--config", config) == 1
        assert "certificate" in capsys.readouterr().err


async def test_a_server_without_tls_is_asked_by_the_same_command(tmp_path: Path) -> None:
    async with loading(tmp_path) as (address, config):
        assert await probe("rollout", address, "--config", config) == 0
        assert await probe("alive", address) == 0


async def test_from_another_machine_it_is_asked_as_callers_ask(tmp_path: Path, ours: Authority) -> None:
    """There the server's certificate cannot be read, and the CA can."""
    async with loading(tmp_path, **options(ours, True)) as (address, config):
        text = Path(config).read_text().replace(str(ours.folder / "server."), "/nowhere/server.")
        text = text.replace(f"rollout_tls_ca: {ours.folder}/elsewhere.pem", f"rollout_tls_ca: {ours.ca}")
        for name, file in (("rollout_client_cert", "learner.pem"), ("rollout_client_key", "learner.key")):
            text = text.replace(f"{name}: {ours.folder}/elsewhere.pem", f"{name}: {ours.folder / file}")
        caller = tmp_path / "caller.yaml"
        caller.write_text(text)
        assert await probe("rollout", address, "--config", str(caller)) == 0
