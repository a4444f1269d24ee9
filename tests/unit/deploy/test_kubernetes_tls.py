"""The component `rollout-tls`: who holds which file, and the real server, probes and caller with what pods would have.

Certificates are those of make-secrets.sh. No engine is loaded and no cluster asked.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from mmr1.cli import main
from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import RolloutClient
from mmr1.tls import TlsFiles
from mmr1_rollout_server.server import Server
from tests.conftest import free_port
from tests.unit.deploy.kubernetes_overlays import SECURED, data_of, named, pod_of, tree

MOUNT = "/run/secrets/tls"
PROBES = {"startupProbe": "rollout", "readinessProbe": "serving", "livenessProbe": "alive"}


def options(overlay: str, component: str) -> dict[str, str]:
    """What the pod's environment takes from the ConfigMap."""
    (source,) = pod_of(overlay, component).main["envFrom"]
    return dict(named(overlay, "ConfigMap", source["configMapRef"]["name"])["data"])


def held(overlay: str, component: str) -> dict[str, bytes]:
    """The files of the pod's folder for TLS."""
    pod = pod_of(overlay, component)
    (name,) = [mount["name"] for mount in pod.main["volumeMounts"] if mount["mountPath"] == MOUNT]
    (secret,) = [volume["secret"]["secretName"] for volume in pod.spec["volumes"] if volume["name"] == name]
    return {key: base64.b64decode(value) for key, value in named(overlay, "Secret", secret)["data"].items()}


@pytest.mark.parametrize("overlay", SECURED)
def test_both_sides_have_the_same_options_and_each_its_own_key(overlay: str) -> None:
    server, learner = (options(overlay, component) for component in ("rollout-server", "learner"))
    assert server == learner
    assert {name.removeprefix("MMR1_").lower() for name in server} <= RunConfig.model_fields.keys()
    assert held(overlay, "rollout-server").keys() == {"ca.crt", "server.crt", "server.key"}
    assert held(overlay, "learner").keys() == {"ca.crt", "client.crt", "client.key"}
    files = {f"{MOUNT}/{name}" for component in ("rollout-server", "learner") for name in held(overlay, component)}
    assert {value for value in server.values() if value.startswith("/")} == files


@pytest.mark.parametrize("overlay", SECURED)
def test_the_probes_ask_what_they_asked_without_tls(overlay: str) -> None:
    pod, plain = (pod_of(name, "rollout-server").main for name in (overlay, overlay.removesuffix("+rollout-tls")))
    asked = {"rollout": ACCEPTS_WEIGHTS, "serving": SERVES, "alive": ""}
    for probe, kind in PROBES.items():
        assert pod[probe].keys() - {"exec"} == plain[probe].keys() - {"grpc"}
        assert plain[probe]["grpc"]["service"] == asked[kind]
        address = f"127.0.0.1:{plain[probe]['grpc']['port']}"
        assert pod[probe]["exec"]["command"] == ["mmr1", "probe", kind, address, "--config", "/etc/mmr1/run.yaml"]
        assert pod[probe]["timeoutSeconds"] <= pod[probe]["periodSeconds"]


def mounted(folder: Path, component: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The run as the pod reads it, from the ConfigMap's file and its environment, with its files below `folder`."""
    overlay = "cpu+rollout-tls"
    own = folder / component
    own.mkdir()
    for name, content in held(overlay, component).items():
        (own / name).write_bytes(content)
    (folder / "run.yaml").write_text(data_of(overlay, "ConfigMap", "run")["run.yaml"])
    for name, value in options(overlay, component).items():
        monkeypatch.setenv(name, value.replace(MOUNT, str(own)))
    monkeypatch.setenv("MMR1_ADVERTISE_HOST", "10.244.0.7")  # a pod's
    (folder / "token").write_text("correct-horse-battery-staple\n")
    (folder / "token").chmod(0o600)
    monkeypatch.setenv("MMR1_ROLLOUT_TOKEN_FILE", str(folder / "token"))
    return load_config(folder / "run.yaml")


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    made = Server(mounted(tmp_path, "rollout-server", monkeypatch), "rollout-0", free_port(), free_port())
    await made._listen()
    await made.health.set(ACCEPTS_WEIGHTS, health_pb2.HealthCheckResponse.SERVING)
    yield f"127.0.0.1:{made.port}"
    await made.grpc.stop(0)


async def test_the_probes_are_answered_in_the_servers_pod(server: str, tmp_path: Path) -> None:
    """With the server's files alone: the learner's key is not there."""
    pod = pod_of("cpu+rollout-tls", "rollout-server").main
    answers = {}
    for probe in PROBES:
        program, *words = pod[probe]["exec"]["command"]
        assert program == "mmr1"
        words = [word.replace("127.0.0.1:50051", server).replace("/etc/mmr1", str(tmp_path)) for word in words]
        answers[probe] = await asyncio.to_thread(main, words)
    assert answers == {"startupProbe": 0, "readinessProbe": 1, "livenessProbe": 0}, "it holds no weights yet"


async def test_the_learner_is_let_in_and_others_are_not(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = RolloutAccess.from_config(mounted(tmp_path, "learner", monkeypatch))

    def ask(access: RolloutAccess) -> str:
        client = RolloutClient(server, "counting", 1, access)
        try:
            return client.status(5.0).server_id
        finally:
            client.close()

    assert await asyncio.to_thread(ask, learner) == "rollout-0"
    assert learner.tls is not None
    for stranger in (RolloutAccess(learner.token), replace(learner, tls=TlsFiles(ca=learner.tls.ca))):
        with pytest.raises((ConfigurationError, grpc.RpcError)):
            await asyncio.to_thread(ask, stranger)


def test_the_certificates_outlive_a_long_run_and_their_authority_signs_no_more() -> None:
    folder = tree() / "secrets" / "tls"
    made = {path.name for path in folder.iterdir()}
    assert made == {
        "kustomization.yaml",
        "ca.crt",
        *(f"{name}.{end}" for name in ("server", "client") for end in ("crt", "key")),
    }
    year = str(366 * 24 * 3600)
    for name in ("ca", "server", "client"):
        command = ["openssl", "x509", "-in", folder / f"{name}.crt", "-noout", "-checkend", year]
        assert subprocess.run(command, capture_output=True).returncode == 0, name
