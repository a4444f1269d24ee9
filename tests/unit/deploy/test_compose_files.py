"""The compose files and Dockerfiles as data: rights, limits, what is published, and agreement with the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmr1.config import RunConfig
from mmr1_reward_server.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FILES = ("docker-compose.yml", "compose.reward.yml")
MARK = "# From here to"


def services(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())["services"]
    return found


ALL = [(name, service) for name in FILES for service in services(name)]


@pytest.mark.parametrize(("file", "name"), ALL)
def test_every_container_has_few_rights_and_limits(file: str, name: str) -> None:
    service = services(file)[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert str(service.get("user", "10001")).split(":")[0] not in ("0", "root")
    assert not service.get("privileged") and "pid" not in service and "network_mode" not in service
    assert len(service["networks"]) == 1
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize(("file", "name"), ALL)
def test_images_are_pinned(file: str, name: str) -> None:
    image = services(file)[name]["image"]
    default = re.fullmatch(r"\$\{[A-Z_]+:-([^}]+)\}", image)
    assert default, "another image can be chosen, and there is a default"
    # podman looks no short name up unless it is told where.
    assert default[1].startswith(("mmr1-", "docker.io/")), image
    _, _, tag = default[1].partition(":")
    assert re.match(r"v?\d+\.\d+\.\d+", tag), image


def test_only_what_a_person_opens_is_published_and_to_this_machine_alone() -> None:
    published = {name: services(file)[name].get("ports", []) for file, name in ALL}
    assert {name for name, ports in published.items() if ports} == {"prometheus", "grafana", "reward-server"}
    assert "ports" not in services("docker-compose.yml")["reward-server"], "only of the file that runs it alone"
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_no_secret_stands_in_a_file_and_each_sees_its_own_alone() -> None:
    of = services("docker-compose.yml")
    for name, service in of.items():
        mounted = {volume.split(":")[0] for volume in service.get("volumes", []) if "-secrets:" in volume}
        own = {"redis": "redis", "reward-server": "reward", "rollout-server": "rollout", "learner": "learner"}
        expected = (
            {f"{one}-secrets" for one in own.values()}
            if name == "prepare"
            else {f"{own[name]}-secrets"}
            if name in own
            else set()
        )
        assert mounted == expected, name
        assert name == "prepare" or all(
            volume.endswith(":ro") for volume in service.get("volumes", []) if "-secrets:" in volume
        )
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), variable
            assert not re.search("PASSWORD$|TOKEN$|KEY$", variable), f"{variable}: secrets are files"


def test_options_in_the_environment_are_the_programs_own() -> None:
    for name, service in services("docker-compose.yml").items():
        for variable in service.get("environment", {}):
            if variable.startswith("MMR1_") and variable != "MMR1_LOG_JSON":  # the logs' own
                assert variable.removeprefix("MMR1_").lower() in RunConfig.model_fields, (name, variable)


def test_what_is_read_only_has_somewhere_to_write() -> None:
    for file, name in ALL:
        if name != "peers":
            assert any(one.startswith("/tmp:") for one in services(file)[name]["tmpfs"]), name


def test_images_set_no_option_of_a_run() -> None:
    """The environment wins over a run's file, and Kubernetes' manifests know nothing of an image's."""
    for service in ("reward_server", "rollout_server", "learner"):
        assert "MMR1_" not in (ROOT / service / "Dockerfile").read_text()


def test_gpus_change_images_and_limits_alone() -> None:
    for name, service in services("compose.gpu.yml").items():
        assert service.keys() <= {"build", "image", "ulimits", "deploy", "stop_grace_period"} and name in services(
            "docker-compose.yml"
        )
        assert service["image"].endswith(":0.1.0-cuda}")
    built = [name for name, service in services("compose.gpu.yml").items() if "build" in service]
    assert built == ["prepare", "rollout-server"], "two builders of one image are in each other's way"


def test_prometheus_asks_where_the_services_listen() -> None:
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    }
    rollout = services("docker-compose.yml")["rollout-server"]["command"]
    assert jobs["rollout-server"]["dns_sd_configs"][0]["port"] == int(rollout[rollout.index("--metrics-port") + 1])
    learner = RunConfig.model_fields["learner_metrics_port"].default
    assert jobs["learner"]["static_configs"][0]["targets"] == [f"learner:{learner}"]
    assert f'"127.0.0.1:{learner}"' in (ROOT / "learner" / "Dockerfile").read_text()


def test_redis_lets_in_whom_the_security_page_says() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rules = {
        line.split()[1]: line.split("#SHA256", 1)[1] for line in page.splitlines() if line.startswith("    user mmr1-")
    }
    shipped = (ROOT / "deploy" / "compose" / "users.acl").read_text().splitlines()
    found = {line.split()[1]: re.split(r"#\{\w+\}", line)[1] for line in shipped if "#{" in line}
    assert found == {user: rules[user] for user in ("mmr1-learner", "mmr1-rollout")}
    assert shipped[-1] == "user default off resetpass ~* &* +@all"
    assert shipped[-2] == "user health on nopass resetkeys resetchannels -@all +ping"


def test_a_container_is_given_the_time_that_its_program_takes_to_stop() -> None:
    of = services("docker-compose.yml")
    seconds = {name: int(of[name]["stop_grace_period"].removesuffix("s")) for name in ("rollout-server", "learner")}
    client = ast.parse((ROOT / "services" / "mmr1" / "rollout_client.py").read_text())
    (stop,) = [
        ast.literal_eval(node.value)
        for node in client.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "STOP_SECONDS" for t in node.targets)
    ]
    assert seconds["rollout-server"] >= stop and seconds["learner"] >= 30
    assert services("compose.gpu.yml")["learner"]["stop_grace_period"] == "600s", "as on Kubernetes"
    drain = Settings.model_fields["drain_seconds"].default
    for file in ("docker-compose.yml", "compose.reward.yml"):
        assert int(services(file)["reward-server"]["stop_grace_period"].removesuffix("s")) > drain


@pytest.mark.parametrize("service", ["reward_server", "rollout_server", "learner"])
def test_dockerfiles(service: str) -> None:
    text = (ROOT / service / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert text.count("\nFROM ") >= 2 and "HEALTHCHECK" in text and "ARG BASE_IMAGE=python:3.11." in text
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text))
    assert labels == {"title", "description", "version", "licenses"}


def test_a_rollout_servers_health_is_asked_for_where_and_with_what_it_was_started() -> None:
    """Its file says whether it speaks TLS. The compose file starts it as the image does, and leaves the check alone."""
    text = (ROOT / "rollout_server" / "Dockerfile").read_text()
    (check,) = re.findall(r"^HEALTHCHECK .*\n  CMD (\[.*\])$", text, re.MULTILINE)
    (start,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    command = ast.literal_eval(start)
    given = dict(zip(command[::2], command[1::2], strict=True))
    address = f"127.0.0.1:{given['--port']}"
    assert ast.literal_eval(check) == ["mmr1", "probe", "rollout", address, "--config", given["--config"]]
    service = services("docker-compose.yml")["rollout-server"]
    assert service["command"] == command and "healthcheck" not in service


def test_learner_and_rollout_server_share_their_layers() -> None:
    shared = [
        (ROOT / service / "Dockerfile").read_text().split(MARK, 1)[1].split("# What differs.")[0]
        for service in ("learner", "rollout_server")
    ]
    assert shared[0] == shared[1] and "COPY --from=environment" in shared[0]


def test_what_images_leave_out_is_in_the_lock() -> None:
    names = [
        line for line in (ROOT / "constraints" / "development.txt").read_text().splitlines() if not line.startswith("#")
    ]
    locked = {line.split("==")[0].lower() for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines()}
    assert [name for name in names if name.lower() not in locked] == []
