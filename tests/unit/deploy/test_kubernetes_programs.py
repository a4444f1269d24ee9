"""The manifests against the programs that they start: options, ports, probes, deadlines, names of streams, exit codes.

Each is taken from the code, or asked of the real program, so that neither side can change alone. Cluster and images are
not here: nothing of this has been started in a pod.
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
from typing import Any

import pytest
import redis

from mmr1.config import RunConfig, load_config
from mmr1.credentials import REWARD_KEY_VARIABLE
from mmr1.errors import CONFIGURATION_ERROR
from mmr1.local.plan import plan
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES
from mmr1.rollout_client import LOAD_SECONDS, STOP_SECONDS
from mmr1.streams import PromptConsumer, RunQueue
from mmr1.streams.scripts import Scripts
from mmr1_reward_server.settings import parse_settings
from tests.conftest import free_port, make_prompt
from tests.own_redis import SYSTEM_REDIS
from tests.peers.running_server import running_server
from tests.unit.deploy.kubernetes_overlays import (
    OVERLAYS,
    ROOT,
    RUNS,
    Pod,
    data_of,
    named,
    objects,
    pod_of,
    tree,
)
from tests.unit.streams.test_queue import V0

NAMES = {"learner": "mmr1_learner.train", "rollout-server": "mmr1_rollout_server"}
MARGIN_SECONDS = 5


def config_of(overlay: str, tmp_path: Path, *options: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(data_of(overlay, "ConfigMap", "run")["run.yaml"])
    return load_config(path, options, environment=False)


def variables(pod: Pod) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod.main.get("env", [])}


def options(words: list[str]) -> dict[str, str]:
    """`--name=value` and `--name value`, by name."""
    text = " ".join(words)
    return {name: value for name, _, value in re.findall(r"--([\w-]+)(=| )(\S+)", text)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_reward_server_is_called_as_its_options_say(overlay: str) -> None:
    pod = pod_of(overlay, "reward-server")
    settings = parse_settings(pod.main["args"])
    assert pod.main["command"] == ["mmr1-reward-server"] and settings.host == "0.0.0.0"
    assert [port["containerPort"] for port in pod.main["ports"]] == [settings.port]
    (volume,) = [v["secret"]["secretName"] for v in pod.spec["volumes"] if "secret" in v]
    mount = next(m["mountPath"] for m in pod.main["volumeMounts"] if m["name"] == "secrets")
    assert {f"{mount}/{key}" for key in named(overlay, "Secret", volume)["data"]} == {settings.api_key_file}
    pause = pod.main["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] >= pause + settings.drain_seconds + MARGIN_SECONDS
    assert [pod.main[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")] == [
        "/readyz",
        "/readyz",
        "/healthz",
    ]


@pytest.mark.parametrize("overlay", RUNS)
class TestOfARun:
    def test_every_process_can_read_it(self, overlay: str, tmp_path: Path) -> None:
        config = config_of(overlay, tmp_path)
        assert config.host == "0.0.0.0"
        for path in (config.model, config.train_file, config.run_dir):
            assert Path(path).is_relative_to("/data"), path
        (reward,) = named(overlay, "Service", "reward-server")["spec"]["ports"]
        assert config.reward_url == f"http://reward-server:{reward['port']}"
        (queue,) = named(overlay, "Service", "redis")["spec"]["ports"]
        for component, user in (("learner", "mmr1-learner"), ("rollout-server", "mmr1-rollout")):
            pod = pod_of(overlay, component)
            assert variables(pod)["MMR1_REDIS_URL"] == f"redis://{user}@redis:{queue['port']}/0"
            mount = {each["mountPath"]: each for each in pod.main["volumeMounts"]}
            assert mount["/etc/mmr1"]["name"] == "run" and mount["/run/secrets/mmr1"]["readOnly"] is True
            sources = next(v for v in pod.spec["volumes"] if "projected" in v)["projected"]["sources"]
            keys = {key for each in sources for key in named(overlay, "Secret", each["secret"]["name"])["data"]}
            assert {f"/run/secrets/mmr1/{key}" for key in keys} == {
                str(config.redis_password_file),
                str(config.rollout_token_file),
                str(config.reward_key_file),
            }

    def test_variables_are_options(self, overlay: str, tmp_path: Path) -> None:
        known = {f"MMR1_{name.upper()}" for name in RunConfig.model_fields}
        for component in NAMES:
            own = variables(pod_of(overlay, component))
            assert own["MMR1_ADVERTISE_HOST"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            assert {name for name in own if name.startswith("MMR1_")} <= known

    def test_a_rollout_server_is_called_as_mmr1_up_calls_it(self, overlay: str, tmp_path: Path) -> None:
        pod, config = pod_of(overlay, "rollout-server"), config_of(overlay, tmp_path)
        command = plan(config, {}).rollouts[0].processes[0].command
        assert pod.main["command"] == ["python", *command[1:3]] == ["python", "-m", NAMES["rollout-server"]]
        own = options(pod.main["args"])
        assert own.keys() == options(command).keys()
        ports = {port["name"]: str(port["containerPort"]) for port in pod.main["ports"]}
        assert own == {
            "config": "/etc/mmr1/run.yaml",
            "server-id": "$(POD_NAME)",
            "port": ports["grpc"],
            "metrics-port": ports["metrics"],
        }
        assert variables(pod)["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}

    def test_its_two_readinesses_are_asked_for_where_each_belongs(self, overlay: str, tmp_path: Path) -> None:
        pod = pod_of(overlay, "rollout-server")
        start = pod.main["startupProbe"]
        assert start["grpc"]["service"] == ACCEPTS_WEIGHTS
        assert start["periodSeconds"] * start["failureThreshold"] >= LOAD_SECONDS
        assert pod.main["readinessProbe"]["grpc"]["service"] == SERVES
        assert pod.main["livenessProbe"]["grpc"]["service"] == ""
        service = named(overlay, "Service", "rollout-server")["spec"]
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
        assert pod.spec["terminationGracePeriodSeconds"] >= STOP_SECONDS + MARGIN_SECONDS

    def test_the_learner_is_called_as_mmr1_up_calls_it(self, overlay: str, tmp_path: Path) -> None:
        pod, config = pod_of(overlay, "learner"), config_of(overlay, tmp_path)
        (process,) = plan(config, {}).learner.processes
        words = [*pod.main["command"], *pod.main["args"]]
        (begin,) = [i for i, word in enumerate(words) if word == NAMES["learner"]]
        assert words[begin - 1] == "-m" == process.command[1] and process.command[2] == words[begin]
        assert options(words[begin:]) == {"config": "/etc/mmr1/run.yaml"}
        assert [port["containerPort"] for port in pod.main["ports"]] == [config.learner_metrics_port]
        assert pod.spec["terminationGracePeriodSeconds"] >= plan(config, {}).learner.stop_deadline_seconds
        if overlay == "multi-node":
            return
        own = variables(pod)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            assert own[name] == process.environment[name], name
        job = objects(overlay, "Job")[0]["spec"]
        assert job["backoffLimit"] == config.max_restarts and job["template"]["spec"]["restartPolicy"] == "Never"
        final = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
        assert [rule["onExitCodes"]["values"] for rule in final] == [[CONFIGURATION_ERROR]]

    def test_the_learner_waits_for_no_more_servers_than_there_are(self, overlay: str, tmp_path: Path) -> None:
        scaled = objects(overlay, "ScaledObject")
        lowest = scaled[0]["spec"]["minReplicaCount"] if scaled else 1
        assert config_of(overlay, tmp_path).rollout_replicas == lowest

    def test_what_scales_reads_the_stream_of_this_run(self, overlay: str, tmp_path: Path) -> None:
        config = config_of(overlay, tmp_path)
        for each in objects(overlay, "ScaledObject"):
            (trigger,) = each["spec"]["triggers"]
            metadata = trigger["metadata"]
            assert trigger["type"] == "redis-streams"
            assert metadata["stream"] == Scripts(redis.Redis(), config.run).key("prompts")
            assert metadata["address"] == "redis.mmr1.svc.cluster.local:6379" and metadata["databaseIndex"] == "0"
            assert int(metadata["lagCount"]) == 2 * config.max_concurrent_prompts


def test_the_nodes_of_a_job_set_find_the_first_of_them(tmp_path: Path) -> None:
    job_set = named("multi-node", "JobSet", "learner")
    (nodes,) = job_set["spec"]["replicatedJobs"]
    pod = pod_of("multi-node", "learner")
    own = options(pod.main["args"])
    network, job = job_set["spec"]["network"], nodes["template"]["spec"]
    assert own["master-addr"] == f"learner-{nodes['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    assert network["subdomain"] not in {each["metadata"]["name"] for each in objects("multi-node", "Service")}
    assert own["nnodes"] == str(job["completions"]) == str(job["parallelism"]) and job["completionMode"] == "Indexed"
    assert own["node-rank"] == "$(NODE_RANK)" and "completion-index" in str(variables(pod)["NODE_RANK"])
    gpus = pod.main["resources"]["limits"]["nvidia.com/gpu"]
    assert own["nproc-per-node"] == gpus
    ranks = int(own["nnodes"]) * int(gpus)
    config = config_of("multi-node", tmp_path, "--learner_processes", str(ranks))
    assert own["master-port"] == str(config.learner_master_port)
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == config.max_restarts and job["backoffLimit"] == 0
    selector = named("multi-node", "Service", "learner")["spec"]["selector"]
    assert selector["batch.kubernetes.io/job-completion-index"] == "0", "rank 0 alone has metrics"


@pytest.fixture(scope="module")
def cluster_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis 7 with the ConfigMap's file, but for its paths and port, and the users that make-secrets.sh has made."""
    if SYSTEM_REDIS is None:
        pytest.skip("this machine has no redis-server of its own; the one that set-up brings is 6.2, which has no lag")
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


def test_the_lag_is_what_nobody_has_taken_and_its_reader_may_read_nothing_else(cluster_redis: int) -> None:
    """The learner feeds, a rollout server takes and settles, each as its own user; the scaler asks as KEDA does."""
    metadata = objects("gpu", "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]
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
        assert lag() == 7
        held = await consumer.take(4, V0, 1)
        assert lag() == 3
        await consumer.dead(held[0], "image_unreadable", "no")
        assert lag() == 3
        await rollout.aclose()

    scaler = client_of(cluster_redis, "scaler")

    def lag() -> int:
        groups: Any = scaler.xinfo_groups(metadata["stream"])
        (found,) = [each for each in groups if each["name"].decode() == metadata["consumerGroup"]]
        return int(found["lag"])

    asyncio.run(serve())
    for command in (("XLEN", metadata["stream"]), ("DEL", metadata["stream"]), ("XINFO", "STREAM", metadata["stream"])):
        with pytest.raises(redis.exceptions.NoPermissionError):
            scaler.execute_command(*command)


class TestHowTheLearnerIsStarted:
    script = ROOT / "deploy" / "kubernetes" / "base" / "run-learner.sh"

    @pytest.mark.parametrize("code", [0, 1, 2])
    def test_an_end_of_its_own_is_passed_on(self, code: int) -> None:
        assert subprocess.run(["sh", self.script, "sh", "-c", f"exit {code}"]).returncode == code

    @pytest.mark.parametrize(("own", "seen"), [(0, 128 + signal.SIGTERM), (143, 143), (2, 2)])
    def test_a_run_that_was_told_to_stop_is_not_done(self, tmp_path: Path, own: int, seen: int) -> None:
        """And the learner is waited for, however long its checkpoint takes."""
        program = (
            "import pathlib, signal, sys, time\n"
            "def stop(*_):\n"
            "    time.sleep(1)\n"
            f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
            f"    sys.exit({own})\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
            "time.sleep(60)\n"
        )
        process = subprocess.Popen(["sh", self.script, sys.executable, "-c", program])
        deadline = time.monotonic() + 20
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == seen and (tmp_path / "saved").exists()

    def test_it_is_what_the_pod_runs(self) -> None:
        pod = pod_of("cpu", "learner")
        assert pod.main["command"] == ["sh", "/opt/mmr1/run-learner.sh"]
        assert data_of("cpu", "ConfigMap", "learner-start") == {"run-learner.sh": self.script.read_text()}


def test_the_example_client_gets_its_rewards(tmp_path: Path) -> None:
    """ask.py of the ConfigMap, against a real server with the Secret's key; without a key it is turned away."""
    script, key = tmp_path / "ask.py", tree() / "secrets" / "reward" / "reward.key"
    script.write_text(data_of("reward-only", "ConfigMap", "reward-client")["ask.py"])
    pod = pod_of("reward-only", "reward-client")
    assert pod.main["command"] == ["python", "/opt/mmr1/ask.py"]
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
    page = (ROOT / "docs" / "security.md").read_text()
    for rule in rules[2:5]:
        assert re.sub(r"#[0-9a-f]{64}", "#SHA256", rule) in page
    modes = {path.stat().st_mode & 0o077 for path in (tree() / "secrets").rglob("*.password")}
    assert modes == {0}
