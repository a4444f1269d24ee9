"""What must hold of every pod of every overlay, and of whatever points at pods, secrets and configurations by name.

A cluster checks some of this too (Pod Security "restricted"); here it is known without one. What the programs in the
pods expect is test_kubernetes_programs.py's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmr1 import __version__
from tests.unit.deploy.kubernetes_overlays import (
    OVERLAYS,
    ROOT,
    RUNS,
    SECURED,
    Document,
    Pod,
    matches,
    named,
    objects,
    pod_of,
    pods,
)

VERSION = re.escape(__version__)
IMAGES = re.compile(
    rf"mmr1-reward-server:{VERSION}|mmr1-(rollout-server|learner):{VERSION}-(cpu|cuda)|docker\.io/library/redis:7\.\d+\.\d+"
)
SERVERS = ("Deployment", "StatefulSet")
UNITS = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def every_pod() -> list[Any]:
    return [pytest.param(o, pod, id=f"{o}-{pod.owner}") for o in (*OVERLAYS, *SECURED) for pod in pods(o)]


@pytest.mark.parametrize(("overlay", "pod"), every_pod())
class TestEveryPod:
    def test_runs_as_nobody_who_may_do_anything(self, overlay: str, pod: Pod) -> None:
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == context["runAsGroup"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
        for container in pod.containers:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert not any("hostPort" in port for port in container.get("ports", []))

    def test_holds_no_token_of_the_cluster_and_gets_no_addresses_as_options(self, overlay: str, pod: Pod) -> None:
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False  # MMR1_<SERVICE>_PORT would be refused as an unknown option
        account = named(overlay, "ServiceAccount", pod.spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False and account["metadata"]["name"] == pod.component

    def test_has_bounds(self, overlay: str, pod: Pod) -> None:
        for container in pod.containers:
            requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
            assert requests.keys() == limits.keys() >= {"cpu", "memory"}, container["name"]
            assert all(0 < amount(requests[name]) <= amount(limits[name]) for name in limits), container["name"]
        memory = sum(
            amount(volume["emptyDir"]["sizeLimit"])
            for volume in pod.spec["volumes"]
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        )
        assert memory < amount(pod.main["resources"]["limits"]["memory"]) / 2  # it counts as the container's

    def test_images_are_pinned(self, overlay: str, pod: Pod) -> None:
        for container in pod.containers:
            assert IMAGES.fullmatch(container["image"]), container["image"]
            assert container.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent"

    def test_its_volumes_are_there_and_of_the_kinds_that_are_allowed(self, overlay: str, pod: Pod) -> None:
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounted = {mount["name"] for container in pod.containers for mount in container["volumeMounts"]}
        assert mounted == volumes.keys() | set(pod.claims)
        for volume in volumes.values():
            (kind,) = volume.keys() - {"name"}
            assert kind in ("emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"), volume
            assert kind != "emptyDir" or amount(volume["emptyDir"]["sizeLimit"]) > 0
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert "/tmp" in paths and len(set(paths)) == len(paths)

    def test_no_volume_hides_what_its_image_holds(self, overlay: str, pod: Pod) -> None:
        mounts = [Path(m["mountPath"]) for container in pod.containers for m in container["volumeMounts"]]
        for dockerfile in ROOT.glob("*/Dockerfile"):
            for line in re.findall(r"^COPY .*", dockerfile.read_text(), re.MULTILINE):
                held = Path(line.split()[-1])
                hidden = [mount for mount in mounts if held.is_relative_to(mount) or mount.is_relative_to(held)]
                assert not hidden, f"{dockerfile.relative_to(ROOT)}: {line}"

    def test_what_it_refers_to_exists(self, overlay: str, pod: Pod) -> None:
        for volume in pod.spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                named(overlay, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            if "configMap" in volume:
                assert named(overlay, "ConfigMap", volume["configMap"]["name"])["data"]
            secrets = [source["secret"]["name"] for source in volume.get("projected", {}).get("sources", [])]
            if "secret" in volume:
                secrets.append(volume["secret"]["secretName"])
            keys = [key for name in secrets for key in named(overlay, "Secret", name)["data"]]
            assert len(set(keys)) == len(keys), "one file would hide another"
        for container in pod.containers:
            for variable in container.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["key"] in named(overlay, "Secret", reference["name"])["data"]
            defined = {variable["name"] for variable in container.get("env", [])}
            used = set(
                re.findall(r"\$\((\w+)\)", " ".join([*container.get("command", []), *container.get("args", [])]))
            )
            shell = container.get("command", [""])[0] == "sh"  # there it is a command's output
            assert shell or used <= defined, used - defined

    def test_no_secret_stands_in_its_environment_or_arguments(self, overlay: str, pod: Pod) -> None:
        for container in pod.containers:
            said = [*container.get("args", []), *(v.get("value", "") for v in container.get("env", []))]
            assert not re.search(r"[0-9a-f]{32}|://[^/@]*:[^/@]*@", " ".join(said))

    def test_a_server_is_asked_whether_it_has_started_is_ready_and_lives(self, overlay: str, pod: Pod) -> None:
        probes = {name for name in pod.main if name.endswith("Probe")}
        wanted = {"startupProbe", "readinessProbe", "livenessProbe"} if pod.owner.startswith(SERVERS) else set()
        assert probes >= wanted
        # A Job's program ends by its own deadlines; a probe could only kill one that is well.
        assert wanted or "livenessProbe" not in probes
        ports = {port["name"]: port["containerPort"] for port in pod.main.get("ports", [])}
        for probe in (pod.main[name] for name in probes):
            for how in probe.keys() & {"httpGet", "tcpSocket", "grpc"}:
                assert probe[how]["port"] in {*ports, *ports.values()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_enforces_the_restricted_standard(overlay: str) -> None:
    labels = named(overlay, "Namespace", "mmr1")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_selects_pods_finds_those_of_one_component(overlay: str) -> None:
    selections: list[tuple[str, Document]] = []
    for service in objects(overlay, "Service"):
        selections.append((service["metadata"]["name"], {"matchLabels": service["spec"]["selector"]}))
    for kind in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
        selections += [(each["metadata"]["name"], each["spec"]["selector"]) for each in objects(overlay, kind)]
    assert selections
    for name, selector in selections:
        assert {pod.component for pod in pods(overlay) if matches(selector, pod.labels)} == {name}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_lead_to_ports_that_their_pods_have(overlay: str) -> None:
    for service in objects(overlay, "Service"):
        pod = pod_of(overlay, service["metadata"]["name"])
        ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"] and port["name"] == port["targetPort"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_scales_points_at_a_deployment_that_leaves_its_number_open(overlay: str) -> None:
    scaled = objects(overlay, "HorizontalPodAutoscaler") + objects(overlay, "ScaledObject")
    assert [each["metadata"]["name"] for each in scaled] == {
        "cpu": [],
        "gpu": ["reward-server", "rollout-server"],
        "multi-node": ["reward-server", "rollout-server"],
        "reward-only": ["reward-server"],
    }[overlay]
    for each in scaled:
        target = named(overlay, "Deployment", each["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"], "each apply would undo what was scaled"
    for each in objects(overlay, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            login = named(overlay, "TriggerAuthentication", trigger["authenticationRef"]["name"])
            for reference in login["spec"]["secretTargetRef"]:
                assert reference["key"] in named(overlay, "Secret", reference["name"])["data"]


def test_every_service_is_scraped() -> None:
    for overlay in ("gpu", "multi-node"):
        monitors = objects(overlay, "ServiceMonitor")
        assert {each["metadata"]["name"] for each in monitors} == {"reward-server", "rollout-server", "learner"}
        for monitor in monitors:
            (service,) = [
                each
                for each in objects(overlay, "Service")
                if matches(monitor["spec"]["selector"], each["metadata"].get("labels", {}))
            ]
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_the_budget_of_servers_lets_one_that_is_ready_go_at_a_time() -> None:
    """Those that are not ready do not count: without a learner no rollout server is, and its node can be drained."""
    for overlay in OVERLAYS:
        budgets = {each["metadata"]["name"]: dict(each["spec"]) for each in objects(overlay, "PodDisruptionBudget")}
        assert budgets.keys() == {each["metadata"]["name"] for each in objects(overlay, "Deployment")}
        for budget in budgets.values():
            del budget["selector"]
            assert budget == {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}


def test_one_node_or_several_share_the_data() -> None:
    for overlay in RUNS:
        modes = named(overlay, "PersistentVolumeClaim", "data")["spec"]["accessModes"]
        assert modes == (["ReadWriteMany"] if overlay == "multi-node" else ["ReadWriteOnce"])
        mounts = {
            pod.component: [m for m in pod.main["volumeMounts"] if m["name"] == "data"]
            for pod in pods(overlay)
            if pod.component in ("learner", "rollout-server")
        }
        assert mounts["learner"] == [{"name": "data", "mountPath": "/data"}]
        assert mounts["rollout-server"] == [{"name": "data", "mountPath": "/data", "readOnly": True}]
