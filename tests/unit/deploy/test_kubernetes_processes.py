"""Real programs with what the manifests give them: Redis, the scripts, the example client. No cluster, no image.

The objects themselves are looked at beside this file.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mmr1.credentials import REWARD_KEY_VARIABLE
from mmr1.streams import PromptConsumer, RunQueue
from mmr1_learner.train import TOLD_TO_STOP
from tests.conftest import free_port, make_group, make_prompt
from tests.own_redis import SYSTEM_REDIS
from tests.peers.running_server import running_server
from tests.unit.deploy.kubernetes_overlays import ROOT, data_of, named, objects, pod_of, tree, variables
from tests.unit.streams.test_queue import V0


@pytest.fixture(scope="module")
def cluster_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis 7 with the ConfigMap's file, but for its paths and port, and the users that make-secrets.sh has made."""
    if SYSTEM_REDIS is None:
        pytest.skip("this machine has no redis-server of its own; the one that set-up brings is 6.2, and pods have 7")
    folder = tmp_path_factory.mktemp("redis")
    users = tree() / "secrets" / "run" / "users.acl"
    text = data_of("cpu", "ConfigMap", "redis")["redis.conf"]
    lines = [line for line in text.splitlines() if not line.startswith(("port", "dir", "bind", "aclfile"))]
    (folder / "redis.conf").write_text("\n".join([*lines, f"aclfile {users}"]))
    port = free_port()
    own = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen([SYSTEM_REDIS, folder / "redis.conf", *own], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True).returncode != 0:
            assert process.poll() is None and time.monotonic() < deadline, "redis-server did not come up"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait(10)


def client_of(port: int, name: str) -> redis.Redis:
    secret = "redis-" + name
    data = named("gpu", "Secret", secret)["data"]
    password = base64.b64decode(data["redis.password"]).decode()
    return redis.Redis(port=port, username=f"mmr1-{name}", password=password)


def test_redis_takes_its_configuration_and_answers_the_probe(cluster_redis: int) -> None:
    pod = pod_of("cpu", "redis")
    for probe in ("startupProbe", "readinessProbe"):
        shell, flag, script = pod.main[probe]["exec"]["command"]
        done = subprocess.run([shell, flag, script.replace("redis-cli", f"redis-cli -p {cluster_redis}")])
        assert done.returncode == 0
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=cluster_redis).ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        redis.Redis(port=cluster_redis, username="probe", password="probe").get("mmr1:{run}:x")
    limit = int(re.search(r"^maxmemory (\d)gb$", data_of("cpu", "ConfigMap", "redis")["redis.conf"], re.M)[1])  # type: ignore[index]
    assert pod.main["resources"]["limits"]["memory"] == f"{2 * limit}Gi"


def test_the_length_is_what_is_not_answered_and_its_reader_may_read_no_prompt(cluster_redis: int) -> None:
    """The learner feeds, a rollout server takes and settles, each as its own user; the scaler asks as KEDA does."""
    stream = objects("gpu", "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["stream"]
    scaler = client_of(cluster_redis, "scaler")
    assert scaler.ping() and scaler.xlen(stream) == 0, "before the run"
    queue = RunQueue(client_of(cluster_redis, "learner"), "run")
    queue.become_writer()
    for position in range(7):
        queue.feed(make_prompt(position, run="run"))

    async def serve() -> None:
        own = client_of(cluster_redis, "rollout").connection_pool.connection_kwargs
        rollout = redis.asyncio.Redis(**{key: own[key] for key in ("port", "username", "password")})
        consumer = PromptConsumer(rollout, "run", "a", claim_idle_seconds=60, max_deliveries=3)
        await consumer.prepare()
        await consumer.register("127.0.0.1:1", "serves", V0, 30)
        assert scaler.xlen(stream) == 7
        held = await consumer.take(4, V0, 1)
        assert scaler.xlen(stream) == 7, "held, and not answered"
        assert await consumer.publish(held[0], make_group(held[0].prompt))
        assert scaler.xlen(stream) == 6
        await consumer.dead(held[1], "image_unreadable", "no")
        assert scaler.xlen(stream) == 5
        await rollout.aclose()

    asyncio.run(serve())
    for command in (("XRANGE", stream, "-", "+"), ("DEL", stream), ("XINFO", "STREAM", stream), ("CONFIG", "GET", "*")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            scaler.execute_command(*command)


class TestHowTheLearnerIsStarted:
    script = ROOT / "deploy" / "kubernetes" / "base" / "run-learner.sh"

    @pytest.mark.parametrize("code", [0, 1, 2])
    def test_an_end_of_its_own_is_passed_on(self, code: int) -> None:
        assert subprocess.run(["sh", self.script, "sh", "-c", f"exit {code}"]).returncode == code

    @pytest.mark.parametrize("code", [TOLD_TO_STOP, 0, 2])
    def test_one_that_is_told_to_stop_is_waited_for(self, tmp_path: Path, code: int) -> None:
        """However long its checkpoint takes. 0 then says that the run was done just before."""
        program = (
            "import pathlib, signal, sys, time\n"
            "def stop(*_):\n"
            "    time.sleep(1)\n"
            f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
            f"    sys.exit({code})\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
            "time.sleep(60)\n"
        )
        process = self.told_to_stop_when_up(program, tmp_path)
        assert process.wait(20) == code and (tmp_path / "saved").exists()

    def test_one_that_does_not_listen_yet_ends_at_once(self, tmp_path: Path) -> None:
        program = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
        process = self.told_to_stop_when_up(program, tmp_path)
        assert process.wait(20) == TOLD_TO_STOP

    def told_to_stop_when_up(self, program: str, folder: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sh", self.script, sys.executable, "-c", program])
        deadline = time.monotonic() + 20
        while not (folder / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return process

    def test_it_is_what_the_pod_runs(self) -> None:
        pod = pod_of("cpu", "learner")
        assert pod.main["command"] == ["sh", "/scripts/run-learner.sh"]
        assert data_of("cpu", "ConfigMap", "learner-start") == {"run-learner.sh": self.script.read_text()}


def test_the_example_client_gets_its_rewards(tmp_path: Path) -> None:
    """ask.py of the ConfigMap, against a real server with the Secret's key; without a key it is turned away."""
    script, key = tmp_path / "ask.py", tree() / "secrets" / "reward" / "reward.key"
    script.write_text(data_of("reward-only", "ConfigMap", "reward-client")["ask.py"])
    pod = pod_of("reward-only", "reward-client")
    assert pod.main["command"] == ["python", "/scripts/ask.py"]
    assert variables(pod).keys() == {"MMR1_REWARD_URL", REWARD_KEY_VARIABLE}
    with running_server("--api-key-file", str(key)) as url:
        for given, code in ((key.read_text(), 0), ("another-key-of-nobody", 1)):
            environment = {**os.environ, "MMR1_REWARD_URL": url, REWARD_KEY_VARIABLE: given}
            done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
            assert done.returncode == code, done.stderr
            if code == 0:
                assert done.stdout.splitlines() == [f"{name}: [1.0, 0.0]" for name in ("openrlhf", "slime", "trl")]


def test_secrets_are_made_once(tmp_path: Path) -> None:
    done = subprocess.run([tree() / "make-secrets.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "remove it first" in done.stderr
    rules = (tree() / "secrets" / "run" / "users.acl").read_text().splitlines()
    assert [rule.split()[1] for rule in rules] == [
        *("default", "probe", "mmr1-learner", "mmr1-rollout", "mmr1-ledger", "mmr1-scaler")
    ]
    # What redis_streams_scaler.go of KEDA sends where `streamLength` is given, after the connection's PING.
    assert [word for word in rules[5].split() if word.startswith(("+", "-"))] == ["-@all", "+ping", "+xlen"]
    page = (ROOT / "docs" / "security.md").read_text()
    for rule in rules[2:5]:
        assert re.sub(r"#[0-9a-f]{64}", "#SHA256", rule) in page
    modes = {
        path.stat().st_mode & 0o077
        for path in (tree() / "secrets").rglob("*.*")
        if path.suffix in (".password", ".key")
    }
    assert modes == {0}
