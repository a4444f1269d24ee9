"""docs/kubernetes.md against the tree: folders, commands, versions and figures that it names."""

from __future__ import annotations

import re
import subprocess

import yaml

from tests.unit.deploy.kubernetes_overlays import (
    KUBECTL,
    OVERLAYS,
    ROOT,
    RUNS,
    build,
    kubectl,
    pods,
    pods_of,
    rendered,
    tree,
)
from tests.unit.deploy.test_kubernetes_pods import amount
from tests.unit.deploy.test_kubernetes_schemas import CRDS, NEWEST, OLDEST

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
HERE = ROOT / "deploy" / "kubernetes"


def test_the_folders_are_those_that_are_there() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w/-]+)`", row)}
    assert named >= {f"overlays/{overlay}" for overlay in OVERLAYS}
    assert {name.partition("/")[0] for name in named} == {
        path.name for path in HERE.iterdir() if path.is_dir() and not path.name.startswith("secrets")
    }
    components = set(
        re.findall(r"`([\w-]+)`", next(row for row in PAGE.splitlines() if row.startswith("| `components`")))
    )
    assert components == {"components"} | {path.name for path in (HERE / "components").iterdir()}


def test_what_scales_by_cpu_needs_what_measures_it() -> None:
    needs = dict(re.findall(r"^\| `overlays/([\w-]+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
    assert needs.keys() == set(OVERLAYS)
    for overlay, text in needs.items():
        by_cpu = any(each["kind"] == "HorizontalPodAutoscaler" for each in rendered(overlay))
        assert ("metrics-server" in text.replace("what `gpu` needs", needs["gpu"])) == by_cpu, overlay


def test_what_is_applied_can_be_rendered() -> None:
    folders = set(re.findall(r"kubectl (?:apply|delete) -k deploy/kubernetes/(\S+)", PAGE))
    assert folders == {"namespace", "loader", "overlays/cpu", "overlays/reward-only"}
    for folder in folders:
        done = build(tree() / folder)
        assert done.returncode == 0, done.stderr
        outside = [d["kind"] for d in yaml.safe_load_all(done.stdout) if d["metadata"].get("namespace") != "mmr1"]
        assert set(outside) <= {"Namespace"}


def test_a_run_is_stopped_by_commands_that_wait_for_its_end() -> None:
    """Of each kind that a learner is; `delete` alone returns while the learner still writes its checkpoint."""
    stopped = re.findall(r"kubectl -n mmr1 delete (job|jobset) (\S+) (\S+)`", PAGE)
    assert stopped == [(kind, "learner", "--cascade=foreground") for kind in ("job", "jobset")]
    learners = {
        document["kind"].lower(): document
        for overlay in RUNS
        for document in rendered(overlay)
        if document["kind"] in ("Job", "JobSet")
    }
    assert {(kind, each["metadata"]["name"]) for kind, each in learners.items()} == {each[:2] for each in stopped}
    seconds = {kind: next(pods_of(each)).spec["terminationGracePeriodSeconds"] for kind, each in learners.items()}
    assert seconds == {"job": 600, "jobset": 60}, "the page says ten minutes, and a minute"


def test_the_label_of_the_first_step_is_the_volume_alone() -> None:
    (key, value) = re.search(r"overlays/cpu -l (\S+)=(\S+)", PAGE).groups()  # type: ignore[union-attr]
    chosen = [d for d in rendered("cpu") if d["metadata"].get("labels", {}).get(key) == value]
    assert [(d["kind"], d["metadata"]["name"]) for d in chosen] == [("PersistentVolumeClaim", "data")]


def test_versions_are_those_of_the_tools() -> None:
    said = subprocess.run([kubectl(), "version", "--client"], capture_output=True, text=True, check=True).stdout
    client, kustomize = re.findall(r"v([\d.]+)", said)
    assert f"kubectl {client} (kustomize {kustomize})" in PAGE
    for lock in ("cpu", "cuda"):
        lines = (ROOT / "constraints" / f"{lock}.txt").read_text()
        assert f"\n{KUBECTL}==" in lines and "\nkubernetes-validate==" in lines
    assert f"schemas of Kubernetes {OLDEST} and {NEWEST}" in PAGE and f"Kubernetes {OLDEST} or newer" in PAGE
    words = re.sub(r"\s+", " ", PAGE)
    assert "those of KEDA 2.16, JobSet v1alpha2 and the Prometheus operator 0.80 (its PrometheusRule: 0.82)" in words
    for kind, source in (
        ("ScaledObject", "KEDA 2.16"),
        ("JobSet", "JobSet v1alpha2"),
        ("ServiceMonitor", "prometheus-operator 0.80"),
        ("PrometheusRule", "prometheus-operator 0.82"),
    ):
        assert source in (CRDS / f"{kind}.json").read_text()


def test_what_the_demonstration_asks_for() -> None:
    def total(kind: str, name: str) -> float:
        return sum(amount(pod.main["resources"][kind][name]) for pod in pods("cpu"))

    memory, most = (round(total(kind, "memory") / 2**30) for kind in ("requests", "limits"))
    cpus, limit = (f"{total(kind, 'cpu'):g}" for kind in ("requests", "limits"))
    cpus += " CPU" if cpus == "1" else " CPUs"
    assert f"It asks for {cpus} and {memory} GiB of memory, and may take {limit} and {most}." in re.sub(
        r"\s+", " ", PAGE
    )
