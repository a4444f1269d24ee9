"""The manifests against the programs that they start: options, ports, probes, deadlines, names of streams, exit codes.

Each is taken from the code, so that neither side can change alone. Nothing is started here.
"""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from mmr1.config import RunConfig, load_config
from mmr1.errors import CONFIGURATION_ERROR
from mmr1.local.plan import plan
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES
from mmr1.rollout_client import LOAD_SECONDS, STOP_SECONDS
from mmr1.streams.scripts import Scripts
from mmr1.tracing import ENDPOINTS
from mmr1_reward_server.settings import parse_settings
from tests.unit.deploy.kubernetes_overlays import (
    OVERLAYS,
    ROOT,
    RUNS,
    TRACED,
    data_of,
    named,
    objects,
    pod_of,
    pods,
    variables,
)

NAMES = {"learner": "mmr1_learner.train", "rollout-server": "mmr1_rollout_server"}
MARGIN_SECONDS = 5


def config_of(overlay: str, tmp_path: Path, *options: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(data_of(overlay, "ConfigMap", "run")["run.yaml"])
    return load_config(path, options, environment=False)


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
        known = {f"MMR1_{name.upper()}" for name in RunConfig.model_fields} | {"MMR1_LOG_JSON"}
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
        # max_restarts counts anew after ten minutes up; a Job counts over its whole life, which may be weeks.
        assert job["backoffLimit"] >= 20 * config.max_restarts and job["template"]["spec"]["restartPolicy"] == "Never"
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
            # KEDA reads the stream's length only where no consumer group is named.
            assert metadata.keys() == {"address", "databaseIndex", "stream", "streamLength"}
            assert int(metadata["streamLength"]) == config.max_concurrent_prompts

    def test_what_scales_asks_for_all_the_servers_that_the_run_keeps_busy(self, overlay: str, tmp_path: Path) -> None:
        """The horizontal autoscaler asks for length / streamLength, rounded up; the learner bounds the length."""
        own = options(pod_of(overlay, "learner").main["args"])
        ranks = int(own.get("nnodes", "1")) * int(own.get("nproc-per-node", "1"))
        config = config_of(overlay, tmp_path, "--learner_processes", str(ranks))
        longest = (config.max_off_policy_steps + 1) * config.prompts_per_step
        for each in objects(overlay, "ScaledObject"):
            target = int(each["spec"]["triggers"][0]["metadata"]["streamLength"])
            most = math.ceil(longest / target)
            assert each["spec"]["minReplicaCount"] < most == each["spec"]["maxReplicaCount"]


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


@pytest.mark.parametrize("overlay", TRACED)
def test_spans_are_sent_where_the_network_lets_them(overlay: str) -> None:
    """By every service that makes some; without the component by nobody."""
    told = traces_of(overlay)
    assert told.keys() == {"learner", "rollout-server", "reward-server"} & {pod.component for pod in pods(overlay)}
    ((name, url),) = {pair for own in told.values() for pair in own.items()}
    assert name in ENDPOINTS and all(own == {name: url} for own in told.values())
    (rule,) = named(overlay, "NetworkPolicy", "traces")["spec"]["egress"]
    namespace = rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert rule["ports"] == [{"port": urlsplit(url).port, "protocol": "TCP"}]
    assert str(urlsplit(url).hostname).split(".")[1:] == [namespace]
    assert not traces_of(overlay.removesuffix("+tracing"))


def test_images_of_the_run_have_the_extra_for_traces() -> None:
    """docs/observability.md says so: what it names is in their locks, and not among what images leave out."""
    extra = tomllib.loads((ROOT / "services" / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "otel"
    ]
    left_out = (ROOT / "constraints" / "development.txt").read_text().splitlines()
    for device in ("cpu", "cuda"):
        locked = (ROOT / "constraints" / f"{device}.txt").read_text()
        for name in (requirement.partition(">")[0] for requirement in extra):
            assert f"\n{name}==" in locked and name not in left_out


def traces_of(overlay: str) -> dict[str, dict[str, str]]:
    """OpenTelemetry's variables of each component that has any."""
    found = {
        pod.component: {name: value for name, value in variables(pod).items() if name.startswith("OTEL_")}
        for pod in pods(overlay)
    }
    return {component: own for component, own in found.items() if own}
