"""API keys and TLS files: what opens the server, and what is refused before it starts."""

from __future__ import annotations

import base64
import logging
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from mmr1_reward_server.auth import KEY_VARIABLE, OPEN_PATHS, RequireKey, load_keys
from mmr1_reward_server.client import RewardClient
from mmr1_reward_server.settings import Settings, SettingsError, parse_settings
from mmr1_reward_server.tls import tls_options

KEYS = ("first-key", "second-key", "a-rather-longer-third-key")


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    return file


def test_keys_come_from_the_file_and_the_environment(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_keys(None) == frozenset()
    keys.write_text("# head\n\n  first-key  # the trainer's #1\nsecond-key\t#\n  #third-key\n")
    assert load_keys(str(keys)) == {"first-key", "second-key"}
    monkeypatch.setenv(KEY_VARIABLE, "third-key\n")
    assert load_keys(str(keys)) == {"first-key", "second-key", "third-key"}
    assert load_keys(None) == {"third-key"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (b"short\n", "line 1: a key has 8 characters or more"),
        (b"good-enough\ntwo words\n", "line 2: a key is made of ASCII characters without spaces"),
        ("schlüssel".encode(), "line 1: a key is made of ASCII"),
        (b"good-enough#more\n", "line 1: there is a # within the key"),
        (b"good-enough# comment\n", "line 1: there is a # within the key"),
        (b"\xff\xfe", "cannot be read: it is not text"),
    ],
)
def test_wrong_key_files_are_named(keys: Path, text: bytes, problem: str) -> None:
    keys.write_bytes(text)
    with pytest.raises(SettingsError) as caught:
        load_keys(str(keys))
    assert str(caught.value).startswith(f"--api-key-file {keys}")
    assert problem in str(caught.value)
    assert "good-enough" not in str(caught.value)


def test_an_empty_variable_is_not_taken_for_no_key(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(SettingsError, match=KEY_VARIABLE):
        load_keys(None)


def test_a_file_that_others_can_read_is_warned_of(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys.write_text("first-key\n")
    load_keys(str(keys))
    assert not caplog.records
    keys.chmod(0o644)
    load_keys(str(keys))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(RequireKey(inner, KEYS))
    async with httpx.AsyncClient(transport=transport, base_url="http://reward") as client:
        yield client


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("key", KEYS)
async def test_each_key_opens_in_each_form(http: httpx.AsyncClient, key: str) -> None:
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key} "},
        {"XRL-Authorization": f"Bearer {key}"},
        {"X-API-Key": key},
        {"Authorization": basic("anyone", key)},
        {"Authorization": basic("", key)},
        {"Authorization": "Bearer of-something-else", "X-API-Key": key},
    ):
        for path in ("/v1/score", "/v1/tasks", "/get_reward/ocr", "/nowhere"):
            assert (await http.post(path, headers=headers)).status_code == 204


async def test_nothing_else_does(http: httpx.AsyncClient) -> None:
    key = KEYS[0]
    for headers in (
        {},
        {"Authorization": key},
        {"Authorization": f"Bearer {key}x"},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {' '.join(KEYS)}"},
        {"X-API-Key": ""},
        {"X-API-Key": f"Bearer {key}"},
        {"Authorization": basic(key, "")},
        {"Authorization": "Basic !!!"},
        {"Cookie": key},
    ):
        for path in ("/v1/score", "/openapi.json", "/healthz/", "/nowhere", "/metrics/x"):
            answer = await http.post(path, headers=headers, content=b"x" * 100)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_probes_need_none(http: httpx.AsyncClient) -> None:
    for path in OPEN_PATHS:
        assert (await http.get(path)).status_code == 204


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
def test_the_client_refuses_a_key_that_fits_into_no_header(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        RewardClient("http://reward", 1, api_key=key)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pems")
    for name, options in (("a", ["-nodes"]), ("b", ["-nodes"]), ("locked", ["-passout", "pass:secret"])):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *options]
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"), "-subj", "/CN=test"]
        subprocess.run([*command, *files], check=True, capture_output=True)
    (folder / "text").write_text("no PEM\n")
    return folder


def test_right_tls_files(pems: Path) -> None:
    assert tls_options(Settings()) == {}
    both = {"tls_cert": str(pems / "a.pem"), "tls_key": str(pems / "a.key")}
    assert set(tls_options(Settings(**both))) == {"ssl_certfile", "ssl_keyfile", "ssl_ciphers"}
    with_ca = tls_options(Settings(**both, tls_client_ca=str(pems / "b.pem")))
    assert set(with_ca) == {"ssl_certfile", "ssl_keyfile", "ssl_ciphers", "ssl_ca_certs", "ssl_cert_reqs"}


@pytest.mark.parametrize(
    ("cert", "key", "ca", "problem"),
    [
        ("none", "a.key", None, r"--tls-cert .*none cannot be read: No such file"),
        ("a.pem", "none", None, r"--tls-key .*none cannot be read: No such file"),
        ("a.pem", "a.key", "none", r"--tls-client-ca .*none cannot be read: No such file"),
        ("a.pem", "b.key", None, r"--tls-key .*b\.key: KEY_VALUES_MISMATCH"),
        ("text", "a.key", None, r"--tls-cert .*text, --tls-key"),
        ("locked.pem", "locked.key", None, r"the key has a password"),
        ("a.pem", "a.key", "text", r"--tls-client-ca .*text: "),
    ],
)
def test_wrong_tls_files_are_named(pems: Path, cert: str, key: str, ca: str | None, problem: str) -> None:
    settings = Settings(
        tls_cert=str(pems / cert), tls_key=str(pems / key), tls_client_ca=None if ca is None else str(pems / ca)
    )
    with pytest.raises(SettingsError, match=problem) as caught:
        tls_options(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [["--tls-cert", "a"], ["--tls-key", "a"], ["--tls-client-ca", "a"]])
def test_tls_options_belong_together(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match=argv[0]):
        parse_settings(argv)
