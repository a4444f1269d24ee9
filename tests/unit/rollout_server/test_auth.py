"""Who gets into a rollout server, and what those hear who do not: the real gRPC server, over real sockets.

No engine is loaded: GetStatus is answered without one, and every other verb passes the same gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.local.readiness import grpc_serving
from mmr1.records import SCHEMA_VERSION
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import RolloutClient
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceStub
from mmr1_rollout_server import preflight
from mmr1_rollout_server.server import Server
from tests.certificates import Authority, authority
from tests.conftest import free_port
from tests.models import small_config

TOKEN = "correct-horse-battery-staple"
OTHER = "wrong-horse-battery-staple"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("server", "IP:127.0.0.1", "DNS:rollout.local")
    made.sign("elsewhere", "DNS:elsewhere.local")
    made.sign("learner")
    return made


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = authority(tmp_path_factory.mktemp("tls") / "strangers")
    made.sign("learner")
    return made


def token_file(folder: Path, *tokens: str) -> Path:
    path = folder / "token"
    path.write_text("\n".join(tokens) + "\n")
    path.chmod(0o600)
    return path


def tls(ours: Authority, name: str = "server") -> dict[str, Any]:
    served = {"rollout_tls_cert": ours.folder / f"{name}.pem", "rollout_tls_key": ours.folder / f"{name}.key"}
    return {**served, "rollout_tls_ca": ours.ca}


def mutual(ours: Authority, callers: Authority) -> dict[str, Any]:
    shown = {
        "rollout_client_cert": callers.folder / "learner.pem",
        "rollout_client_key": callers.folder / "learner.key",
    }
    return {**tls(ours), "rollout_tls_client_ca": ours.ca, **shown}


@contextlib.asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[str]:
    """The address of a server that listens and will never load an engine."""
    server = Server(small_config(folder, **options), "rollout-0", free_port(), free_port())
    await server._listen()
    try:
        yield server.address
    finally:
        await server.grpc.stop(0)


def caller(folder: Path, **options: Any) -> RolloutAccess:
    return RolloutAccess.from_config(small_config(folder, **options), {})


async def status(address: str, access: RolloutAccess) -> str:
    def ask() -> str:
        client = RolloutClient(address, "test", 1, access)
        try:
            return client.status(5.0).server_id
        finally:
            client.close()

    return await asyncio.to_thread(ask)


async def refused(address: str, access: RolloutAccess) -> str:
    """The one line that the caller's user reads; quickly, and without a secret."""
    begun = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        await status(address, access)
    assert time.monotonic() - begun < 5
    line = str(caught.value)
    assert "\n" not in line and TOKEN not in line and OTHER not in line and "PRIVATE" not in line
    return line


async def test_a_token_lets_in_and_nothing_else_does(tmp_path: Path) -> None:
    async with serving(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN)) as address:
        assert await status(address, RolloutAccess(TOKEN)) == "rollout-0"
        assert await refused(address, RolloutAccess(OTHER)) == (
            f"rollout server {address} refuses our token; give both sides the same rollout_token_file or "
            "MMR1_ROLLOUT_TOKEN"
        )
        assert "asks for a token and we have none" in await refused(address, RolloutAccess())
        for near in (TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
            assert "refuses our token" in await refused(address, RolloutAccess(near))


async def test_a_new_token_can_be_let_in_before_the_old_one_goes(tmp_path: Path) -> None:
    async with serving(tmp_path, rollout_token_file=token_file(tmp_path, OTHER, TOKEN)) as address:
        assert caller(tmp_path, rollout_token_file=tmp_path / "token").token == OTHER
        assert [await status(address, RolloutAccess(token)) for token in (OTHER, TOKEN)] == ["rollout-0"] * 2


async def test_the_token_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMR1_ROLLOUT_TOKEN", TOKEN)
    async with serving(tmp_path) as address:
        assert await status(address, RolloutAccess.from_config(small_config(tmp_path))) == "rollout-0"
        await refused(address, RolloutAccess())


async def test_every_verb_asks_for_the_token_and_so_does_reflection(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = RolloutServiceStub(channel)
        verbs = pb.DESCRIPTOR.services_by_name["RolloutService"].methods_by_name
        assert len(verbs) >= 9
        for verb, method in verbs.items():
            request = getattr(pb, method.input_type.name)()
            assert await code_of(getattr(stub, verb)(request, timeout=5)) is grpc.StatusCode.UNAUTHENTICATED, verb
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=5)
        assert await code_of(listing.read()) is grpc.StatusCode.UNAUTHENTICATED
        unknown = channel.unary_unary("/mmr1.v1.RolloutService/Nothing")(b"", timeout=5)
        assert await code_of(unknown) is grpc.StatusCode.UNAUTHENTICATED  # what there is, is no stranger's business


async def test_metadata_that_only_looks_like_a_token_is_refused(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = RolloutServiceStub(channel)
        for value in ("", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer{TOKEN}", "Bearer " + "x" * 5000):
            call = stub.GetStatus(
                pb.GetStatusRequest(schema_version=SCHEMA_VERSION), metadata=(("authorization", value),)
            )
            assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED, value
        shown = (("authorization", "Bearer nothing"), ("authorization", f"bearer {TOKEN}"))
        reply = await stub.GetStatus(pb.GetStatusRequest(schema_version=SCHEMA_VERSION), metadata=shown)
        assert reply.server_id == "rollout-0"


async def test_health_needs_no_token(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_tls_and_the_names_in_certificates(tmp_path: Path, ours: Authority, strangers: Authority) -> None:
    secret = {"rollout_token_file": token_file(tmp_path, TOKEN)}
    async with serving(tmp_path, **tls(ours), **secret) as address:
        assert await status(address, caller(tmp_path, rollout_tls_ca=ours.ca, **secret)) == "rollout-0"
        named = caller(tmp_path, rollout_tls_ca=ours.ca, rollout_tls_name="rollout.local", **secret)
        assert await status(address, named) == "rollout-0"
        assert "refuses our token" in await refused(address, RolloutAccess(OTHER, named.tls))
        line = await refused(address, caller(tmp_path, **secret))
        assert line == f"rollout server {address} speaks TLS and we do not; set rollout_tls_ca"
        line = await refused(address, caller(tmp_path, rollout_tls_ca=strangers.ca, **secret))
        assert "certificate is not trusted" in line and "rollout_tls_ca" in line
        other = caller(tmp_path, rollout_tls_ca=ours.ca, rollout_tls_name="elsewhere.local", **secret)
        assert "Hostname mismatch" in await refused(address, other)


async def test_tls_against_a_server_without_it(tmp_path: Path, ours: Authority) -> None:
    async with serving(tmp_path) as address:
        assert "it speaks no TLS" in await refused(address, caller(tmp_path, rollout_tls_ca=ours.ca))


async def test_callers_show_certificates(tmp_path: Path, ours: Authority, strangers: Authority) -> None:
    async with serving(tmp_path, **mutual(ours, ours)) as address:
        assert await status(address, caller(tmp_path, **mutual(ours, ours))) == "rollout-0"
        line = await refused(address, caller(tmp_path, rollout_tls_ca=ours.ca))
        assert "asks for a certificate" in line and "rollout_client_cert" in line
        assert "does not trust the one that we show" in await refused(
            address, caller(tmp_path, **mutual(ours, strangers))
        )


async def test_readiness_is_asked_over_tls(tmp_path: Path, ours: Authority) -> None:
    secret = {"rollout_token_file": token_file(tmp_path, TOKEN)}
    async with serving(tmp_path, **mutual(ours, ours), **secret) as address:
        assert await grpc_serving(address, "", caller(tmp_path, **mutual(ours, ours)))()
        assert not await grpc_serving(address, "")()


async def test_a_server_that_is_not_there_is_no_configuration_error(tmp_path: Path, ours: Authority) -> None:
    address = f"127.0.0.1:{free_port()}"
    for access in (RolloutAccess(TOKEN), caller(tmp_path, rollout_tls_ca=ours.ca)):
        with pytest.raises(grpc.RpcError) as caught:
            await status(address, access)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds nothing"),
        ("short\n", "line 1: a token has 16 characters or more"),
        ("two words that are long enough\n", "without spaces"),
        ("ä" * 20 + "\n", "ASCII"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_token_file_that_holds_none_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        RolloutAccess.from_config(small_config(tmp_path, rollout_token_file=path), {})
    assert "words" not in str(caught.value)


def test_an_empty_variable_and_two_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MMR1_ROLLOUT_TOKEN is empty"):
        RolloutAccess.from_config(small_config(tmp_path), {"MMR1_ROLLOUT_TOKEN": " "})
    config = small_config(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN))
    with pytest.raises(ConfigurationError, match="both given"):
        RolloutAccess.from_config(config, {"MMR1_ROLLOUT_TOKEN": TOKEN})


def test_wrong_files_are_named_before_an_engine_loads(tmp_path: Path, ours: Authority, small_model: Path) -> None:
    def checked(**options: Any) -> str:
        config = small_config(small_model, image_root=tmp_path, **options)
        with pytest.raises(ConfigurationError) as caught:
            preflight.check(config, "rollout-0", free_port(), free_port())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    good = tls(ours)
    assert "rollout_tls_cert missing.pem cannot be read" in checked(**{**good, "rollout_tls_cert": Path("missing.pem")})
    line = checked(**{**good, "rollout_tls_key": ours.folder / "learner.key"})
    assert "KEY_VALUES_MISMATCH" in line and "rollout_tls_key" in line
    shown = {**mutual(ours, ours), "rollout_tls_client_ca": ours.folder / "ca.key"}
    assert "give certificates in PEM" in checked(**shown)
    assert "holds nothing" in checked(rollout_token_file=token_file(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollout_tls_cert": "c.pem"}, "rollout_tls_cert and rollout_tls_key belong together"),
        ({"rollout_tls_cert": "c.pem", "rollout_tls_key": "k.pem"}, "rollout_tls_cert needs rollout_tls_ca"),
        ({"rollout_tls_client_ca": "ca.pem"}, "rollout_tls_client_ca needs rollout_tls_cert"),
        ({"rollout_client_cert": "c.pem", "rollout_client_key": "k.pem"}, "rollout_client_cert needs rollout_tls_ca"),
        ({"rollout_tls_name": "x"}, "rollout_tls_name needs rollout_tls_ca"),
    ],
)
def test_half_of_what_belongs_together_is_refused(options: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        small_config(tmp_path, **options)


def test_secrets_are_in_no_representation(tmp_path: Path, ours: Authority) -> None:
    access = caller(tmp_path, rollout_token_file=token_file(tmp_path, TOKEN), rollout_tls_ca=ours.ca)
    assert access.token == TOKEN
    assert TOKEN not in repr(access)
    config: RunConfig = small_config(tmp_path, rollout_token_file=tmp_path / "token")
    assert TOKEN not in repr(config) + config.model_dump_json()


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()
