"""The reward server as a process of its own: ports, signals, limits over a real socket, and what it imports."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mmr1_reward_server.api import Outcome, Result
from mmr1_reward_server.client import RewardClient
from tests.unit.reward_server.reward_scorers import item

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCORERS = "tests.unit.reward_server.reward_scorers"


def reward(name: str) -> list[str]:
    return ["--reward", f"{SCORERS}:{name}"]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "mmr1_reward_server", *options]


def start(
    *options: str, limits: Callable[[], None] | None = None, first: str = "", **environment: str
) -> tuple[subprocess.Popen[str], int]:
    """The process, once it listens, and its port. Before all else `limits` is called, and the line `first` is run."""
    argv = command("--port", "0", *options)
    if first:
        argv[1:3] = ["-c", f"{first}; from mmr1_reward_server.__main__ import main; sys.exit(main())"]
    process = subprocess.Popen(
        argv,
        preexec_fn=limits,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"event=listening .*port=(\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that the pipe never fills
            return process, int(match.group(1))
    raise AssertionError(f"the server ended with {process.wait()}")


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process, port = start("--max-body-bytes", "100000", *reward("SLEEPS"), *reward("PROCESS_ID"), *reward("MARKS"))
    yield port
    assert end(process) == 0


def test_scores_over_a_socket(port: int) -> None:
    async def call() -> list[float | None]:
        async with RewardClient(f"http://127.0.0.1:{port}", 20) as client:
            batches = await asyncio.gather(*(client.score([item("counting")] * 16) for _ in range(20)))
            return [result.reward for batch in batches for result in batch]

    assert asyncio.run(call()) == [1.0] * 320
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).json() == {"status": "ready"}


@pytest.mark.parametrize("declared", [True, False])
def test_an_oversized_body_is_refused_over_a_socket(port: int, declared: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = b" " * 150_000
    connection.request("POST", "/v1/score", body if declared else iter([body]), encode_chunked=not declared)
    response = connection.getresponse()
    assert response.status == 413
    assert b"body_too_large" in response.read()
    connection.close()


@pytest.mark.parametrize("levels", [64, 65, 190])
def test_deep_nesting_costs_no_worker(port: int, levels: int) -> None:
    solution = json.loads("[" * levels + "]" * levels)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(trust_env=False, base_url=url, timeout=20) as client:
        before = replaced_workers(client)
        asked = {"id": "1", "task": "process_id", "response": "", "solution": solution}
        (result,) = client.post("/v1/score", json={"items": [asked]}).json()["results"]
        assert result["outcome"] == ("ok" if levels == 64 else "verifier_error")
        if levels > 64:
            assert result["detail"].endswith("nested more than 64 levels deep")
            sample = {"response": "", "label": solution}
            assert client.post("/slime/process_id?detail=1", json=sample).json()["verifier_error"] == 1.0
        assert replaced_workers(client) == before


def replaced_workers(client: httpx.Client) -> str:
    """What the metrics say of the workers that had to be replaced."""
    lines = client.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if "restart" in line and "_created" not in line)


def queue_depth(client: httpx.Client) -> int:
    match = re.search(r"^mmr1_reward_queue_depth (\d+)", client.get("/metrics").text, re.MULTILINE)
    assert match is not None
    return int(match.group(1))


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_at, f"after {seconds:g} s: not {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward/sleeps"])
def test_nobody_waits_behind_the_work_of_a_client_that_hung_up(port: int, path: str) -> None:
    one = item("sleeps", solution=1)
    body = {
        "/v1/score": {"items": [one.model_dump()] * 100},
        "/get_reward/sleeps": {"query": [""] * 100, "prompts": [""] * 100, "labels": [1] * 100},
    }[path]
    with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: queue_depth(client) == 100, "taken")
        time.sleep(0.2)  # while it is being scored
        assert queue_depth(client) == 100
        connection.close()
        until(lambda: queue_depth(client) == 0, "dropped")
        # A hundred seconds of work are left to two workers; only what they have in hand is done first.
        asked = {"items": [item("counting").model_dump()]}
        began = time.monotonic()
        (result,) = client.post("/v1/score", json=asked).json()["results"]
        assert result["reward"] == 1.0
        assert time.monotonic() - began < 15


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        done = subprocess.run(command("--port", taken), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {taken}: the port is in use" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--prot", "1"], "--prot"),
        (["--port", "x"], "--port"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--reward", "no_such_module:f"], "--reward no_such_module:f cannot be imported: ModuleNotFoundError"),
        (["--reward", "json:tool"], "--reward json:tool cannot be imported: AttributeError"),
        (["--reward", f"{SCORERS}:FAILING"], "is a tuple, not a function or a Task"),
        (["--api-key-file", "/no/such/file"], "--api-key-file /no/such/file cannot be read"),
        (["--tls-cert", "/no/cert", "--tls-key", "/no/key"], "--tls-cert /no/cert cannot be read"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(argv: list[str], named: str) -> None:
    done = subprocess.run(command("--port", "0", *argv), capture_output=True, text=True, timeout=30, cwd=REPOSITORY)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert named in done.stderr


def test_workers_that_cannot_start_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    plugin = "import os, sys\nif '--parent' in sys.argv: os._exit(3)\nf = lambda response, solution: 1.0\n"
    (tmp_path / "crashes.py").write_text(plugin)
    argv = command("--port", "0", "--reward", "crashes:f", "--workers", "1")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "it ended before it was ready" in done.stderr


def processes_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(one) for one in listed.stdout.split()]


def test_sigterm_drains_and_a_hanging_scorer_does_not_hold_the_process() -> None:
    process, port = start("--item-deadline-seconds", "3", *reward("SLEEPS"))
    workers = processes_of(process.pid)
    assert len(workers) == 2

    async def call() -> list[Outcome]:
        async with RewardClient(f"http://127.0.0.1:{port}", 20) as client:
            stuck = await client.score([item("sleeps", solution=3600)])
            draining = asyncio.ensure_future(client.score([item("sleeps", solution=1.5)]))
            with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}") as looking:
                await asyncio.to_thread(until, lambda: queue_depth(looking) == 1, "taken")
            process.send_signal(signal.SIGTERM)
            return [result.outcome for result in stuck + await draining]

    assert asyncio.run(call()) == [Outcome.TIMEOUT, Outcome.OK]
    began = time.monotonic()
    assert process.wait(20) == 0
    assert time.monotonic() - began < 10


def test_what_is_not_done_when_the_time_to_drain_is_over_may_be_asked_again() -> None:
    process, port = start("--drain-seconds", "1", "--workers", "1", *reward("SLEEPS"))
    url = f"http://127.0.0.1:{port}"
    bodies = {
        "/v1/score": {"items": [item("sleeps", solution=4).model_dump()]},
        "/get_reward/sleeps": {"query": [""], "prompts": [""], "labels": [4]},
    }

    def ask(path: str) -> httpx.Response:
        return httpx.post(url + path, json=bodies[path], trust_env=False, timeout=20)

    with ThreadPoolExecutor(len(bodies)) as pool, httpx.Client(trust_env=False, base_url=url) as looking:
        asking = [pool.submit(ask, path) for path in bodies]
        until(lambda: queue_depth(looking) == len(bodies), "taken")
        process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in asking]
    assert process.wait(20) == 0
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "overloaded"


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_no_worker_outlives_a_server_that_is_killed() -> None:
    process, port = start("--item-deadline-seconds", "3600", *reward("HOLDS_LOCK"))
    workers = processes_of(process.pid)

    async def call() -> None:
        async with RewardClient(f"http://127.0.0.1:{port}", 1) as client:
            await client.score([item("holds_lock")])

    asyncio.run(call())
    process.kill()
    process.wait(10)
    for _ in range(100):
        if not any(map(alive, workers)):
            break
        time.sleep(0.05)
    assert [one for one in workers if alive(one)] == []


def test_a_worker_killed_in_the_middle_of_a_batch_costs_one_item(port: int, tmp_path: Path) -> None:
    markers = [tmp_path / "one", tmp_path / "two"]  # one batch for each worker

    def written() -> bool:
        return markers[0].exists() and markers[0].read_text().endswith("\n")

    async def call() -> list[Outcome]:
        async with RewardClient(f"http://127.0.0.1:{port}", 30) as client:
            others = [item("counting")] * 50
            batches = [
                asyncio.ensure_future(client.score([*others, item("marks", solution=str(marker)), *others]))
                for marker in markers
            ]
            await asyncio.to_thread(until, written, "scoring")
            os.kill(int(markers[0].read_text()), signal.SIGKILL)
            return [result.outcome for batch in batches for result in await batch]

    outcomes = asyncio.run(call())
    assert len(outcomes) == 202
    assert Counter(outcomes) == {Outcome.OK: 201, Outcome.VERIFIER_ERROR: 1}


def test_only_a_key_opens_the_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst-key-of-file\n\nsecond-key-of-file  # theirs\n")
    keys.chmod(0o600)
    process, port = start("--api-key-file", str(keys), "--workers", "1", MMR1_REWARD_API_KEY="key-of-environment")
    url = f"http://127.0.0.1:{port}"

    async def call(key: str | None) -> Result:
        async with RewardClient(url, 10, api_key=key) as client:
            return (await client.score([item("counting")]))[0]

    try:
        for key in ("first-key-of-file", "second-key-of-file", "key-of-environment"):
            assert asyncio.run(call(key)).reward == 1.0
        for wrong in (None, "first-key-of-fil", "another-key"):
            refused = asyncio.run(call(wrong))
            assert refused.outcome is Outcome.VERIFIER_ERROR
            assert "401: this server asks for an API key" in refused.detail
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(url + path, trust_env=False).status_code == 200
        basic = httpx.get(f"{url}/v1/tasks", auth=("anyone", "first-key-of-file"), trust_env=False)
        assert basic.status_code == 200
    finally:
        assert end(process) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(made[1]), "-out", str(made[0]), "-days", "2", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return made


def test_tls_and_client_certificates(certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    process, port = start("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", cert, "--workers", "1")
    known = ssl.create_default_context(cafile=cert)
    known.load_cert_chain(cert, key)

    async def call(verify: ssl.SSLContext | str | bool) -> Result:
        async with RewardClient(f"https://127.0.0.1:{port}", 5, verify=verify) as client:
            return (await client.score([item("counting")]))[0]

    try:
        assert asyncio.run(call(known)).reward == 1.0
        for stranger in (cert, True):  # without a certificate of its own; without trust in the server's
            assert asyncio.run(call(stranger)).outcome is Outcome.VERIFIER_ERROR
    finally:
        assert end(process) == 0


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("mmr1_reward_server.__main__", ["torch", "vllm", "grpc", "redis", "transformers", "mmr1", "mmr1_learner"]),
        ("mmr1_reward_server.client", ["torch", "vllm", "grpc", "redis", "mmr1", "fastapi", "starlette", "uvicorn"]),
    ],
)
def test_imports_stand_alone(module: str, forbidden: list[str]) -> None:
    program = f"""
        import sys, {module}
        sys.exit(", ".join(sorted(set({forbidden!r}) & set(sys.modules))))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) in ((0, ""), (1, "\n")), done.stderr
