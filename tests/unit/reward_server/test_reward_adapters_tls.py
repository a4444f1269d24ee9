"""The adapters against a server with a CA of its own, which wants to see their certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mmr1_reward_server import adapters
from mmr1_reward_server.adapters import RewardUnavailable
from mmr1_reward_server.adapters.trust import CA, CERT, KEY
from mmr1_reward_server.app import create_app
from mmr1_reward_server.settings import Settings
from mmr1_reward_server.tls import tls_options
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live
from tests.unit.reward_server.reward_peers import peer_tasks


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and signed by it server.pem and client.pem, with their keys; both.pem is the client's with its key."""
    folder = tmp_path_factory.mktemp("pems")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    openssl("req", "-x509", *new, "-nodes", "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        key, request = folder / f"{name}.key", folder / f"{name}.csr"
        openssl("req", *new, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial")
        names = ("-extfile", folder / "names", "-out", folder / f"{name}.pem")
        openssl("x509", "-req", "-in", request, *signed, *names)
    (folder / "both.pem").write_text((folder / "client.pem").read_text() + (folder / "client.key").read_text())
    openssl("ec", "-in", folder / "client.key", "-aes256", "-passout", "pass:secret", "-out", folder / "locked.key")
    (folder / "text").write_text("no PEM\n")
    return folder


@pytest.fixture(scope="module")
def url(pems: Path) -> Iterator[str]:
    files = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    settings = Settings(**{option: str(pems / name) for option, name in files.items()})
    tasks = peer_tasks()
    # What the loops of asyncio.run leave open never says goodbye; nothing is to wait for it.
    options = {**tls_options(settings), "timeout_graceful_shutdown": 1}
    with live(create_app(settings, tasks, InProcessScoring(tasks)), **options) as address:
        yield address


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MMR1_REWARD_URL", url)
    monkeypatch.setenv("MMR1_REWARD_TASK", "counting")
    for name in (CA, CERT, KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("ciphers", "taken"),
    [("ECDHE+AESGCM", True), ("ECDHE+CHACHA20", True), ("ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-SHA256", False)],
)
def test_tls_1_2_is_spoken_with_authenticated_ciphers_only(pems: Path, url: str, ciphers: str, taken: bool) -> None:
    context = ssl.create_default_context(cafile=str(pems / "ca.pem"))
    context.load_cert_chain(pems / "both.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port), timeout=5) as plain:
        if taken:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                assert connection.version() == "TLSv1.2"
        else:
            # Its refusal, or that it hung up: which of them is read first depends on how busy the machine is.
            with pytest.raises((ssl.SSLError, ConnectionResetError), match=r"HANDSHAKE_FAILURE|EOF|reset by peer"):
                context.wrap_socket(plain, server_hostname=host)


def ask(deadline_seconds: float = 20) -> list[float]:
    """What the synchronous and the asynchronous adapter get."""
    asked = {"solution_str": "<answer>3</answer>", "ground_truth": "3", "deadline_seconds": deadline_seconds}
    return [
        adapters.verl_reward(**asked)["score"],  # type: ignore[arg-type]
        asyncio.run(adapters.verl_reward_async(**asked))["score"],  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("files", [{CERT: "client.pem", KEY: "client.key"}, {CERT: "both.pem"}])
def test_a_ca_and_a_certificate_open_the_server(
    monkeypatch: pytest.MonkeyPatch, pems: Path, files: dict[str, str]
) -> None:
    for name, file in (files | {CA: "ca.pem"}).items():
        monkeypatch.setenv(name, str(pems / file))
    assert ask() == [1.0, 1.0]


@pytest.mark.parametrize("files", [{CA: "ca.pem"}, {CERT: "both.pem"}, {CA: "client.pem", CERT: "both.pem"}])
def test_without_either_there_is_no_reward(monkeypatch: pytest.MonkeyPatch, pems: Path, files: dict[str, str]) -> None:
    for name, file in files.items():
        monkeypatch.setenv(name, str(pems / file))
    with pytest.raises(RewardUnavailable, match=r"no answer from https://127\.0\.0\.1:.* within 0\.7 s"):
        ask(0.7)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({CA: "none"}, f"{CA} .*none cannot be read: No such file"),
        ({CA: "text"}, f"{CA} .*text: .*PEM"),
        ({CERT: "none"}, f"{CERT} .*none cannot be read"),
        ({CERT: "client.pem", KEY: "none"}, f"{KEY} .*none cannot be read"),
        ({CERT: "client.pem"}, f"{CERT} .*client.pem"),
        ({CERT: "client.pem", KEY: "server.key"}, f"{KEY} .*server.key: KEY_VALUES_MISMATCH"),
        ({CERT: "client.pem", KEY: "locked.key"}, "the key has a password"),
        ({KEY: "client.key"}, f"{KEY} needs {CERT}"),
    ],
)
def test_wrong_files_are_named(
    monkeypatch: pytest.MonkeyPatch, pems: Path, files: dict[str, str], problem: str
) -> None:
    for name, file in files.items():
        monkeypatch.setenv(name, str(pems / file))
    with pytest.raises(ValueError, match=problem) as caught:
        ask()
    assert "\n" not in str(caught.value)
