"""Every object of every overlay against the schema of its kind, unknown keys refused. No cluster is asked.

Kubernetes' own kinds: the schemas that the package kubernetes-validate bundles, of the oldest release that we name and
of its newest. Others: tests/data/crds, where each file says what it is made of.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from tests.unit.deploy.kubernetes_overlays import (
    OVERLAYS,
    ROOT,
    SECURED,
    TRACED,
    Document,
    build,
    data_of,
    named,
    rendered,
    tree,
)

CRDS = ROOT / "tests" / "data" / "crds"
OLDEST, NEWEST = "1.30", "1.37"  # docs/kubernetes.md: preStop's `sleep` came with 1.30


def validate(document: Document, version: str) -> None:
    """Raises ValidationError."""
    own = CRDS / f"{document['kind']}.json"
    if not own.exists():
        kubernetes_validate.validate(document, version, strict=True)
        return
    Draft202012Validator(json.loads(own.read_text())).validate(document)
    if document["kind"] == "JobSet":
        for job in document["spec"]["replicatedJobs"]:
            kubernetes_validate.validate(
                {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]},
                version,
                strict=True,
            )


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("overlay", (*OVERLAYS, *TRACED, *SECURED))
def test_every_object_is_of_its_kind(overlay: str, version: str) -> None:
    for document in rendered(overlay):
        try:
            validate(document, version)
        except ValidationError as error:
            pytest.fail(f"{document['kind']}/{document['metadata']['name']}: {error.json_path}: {error.message}")


def test_the_newest_schemas_are_there() -> None:
    assert kubernetes_validate.latest_version().startswith(NEWEST)


@pytest.mark.parametrize(
    ("overlay", "kind", "name", "path"),
    [
        ("cpu", "Deployment", "rollout-server", "spec.template.spec.containers.0.startupProbe.grpc"),
        ("cpu", "NetworkPolicy", "run", "spec.egress.0"),
        ("gpu", "ScaledObject", "rollout-server", "spec.triggers.0"),
        ("gpu", "TriggerAuthentication", "redis-scaler", "spec.secretTargetRef.0"),
        ("gpu", "ServiceMonitor", "learner", "spec.endpoints.0"),
        ("gpu", "PrometheusRule", "mmr1", "spec.groups.0.rules.0"),
        ("multi-node", "JobSet", "learner", "spec.network"),
        ("multi-node", "JobSet", "learner", "spec.replicatedJobs.0"),
        ("multi-node", "JobSet", "learner", "spec.replicatedJobs.0.template.spec.template.spec.containers.0"),
    ],
)
def test_a_key_that_no_schema_has_is_refused(overlay: str, kind: str, name: str, path: str) -> None:
    document = copy.deepcopy(named(overlay, kind, name))
    validate(document, NEWEST)
    place: Any = document
    for key in path.split("."):
        place = place[int(key) if key.isdigit() else key]
    place["sevrice"] = "x"
    with pytest.raises(ValidationError):
        validate(document, NEWEST)


def test_names_are_given_once_and_all_but_the_namespace_lie_in_it() -> None:
    for overlay in OVERLAYS:
        names = [(document["kind"], document["metadata"]["name"]) for document in rendered(overlay)]
        assert len(names) == len(set(names)), overlay
        outside = [d["kind"] for d in rendered(overlay) if d["metadata"].get("namespace") != "mmr1"]
        assert outside == ["Namespace"], overlay


def test_a_change_of_the_run_gives_its_configuration_another_name(tmp_path: Path) -> None:
    """So that every pod gets the new one, or none does."""
    copied = tmp_path / "kubernetes"
    shutil.copytree(tree(), copied)
    run = copied / "overlays" / "cpu" / "run.yaml"
    run.write_text(run.read_text().replace("num_steps: 80", "num_steps: 81"))
    changed = list(yaml.safe_load_all(build(copied / "overlays" / "cpu").stdout))
    before = {d["metadata"]["name"] for d in rendered("cpu") if d["kind"] == "ConfigMap"}
    after = {d["metadata"]["name"] for d in changed if d["kind"] == "ConfigMap"}
    (old,), (new,) = before - after, after - before
    (deployment,) = [d for d in changed if d["kind"] == "Deployment" and d["metadata"]["name"] == "rollout-server"]
    used = [
        volume["configMap"]["name"]
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    ]
    assert old.startswith("run-") and used == [new]


def test_without_secrets_nothing_is_rendered(tmp_path: Path) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(ROOT / "deploy" / "kubernetes", copied, ignore=shutil.ignore_patterns("secrets"))
    done = build(copied / "overlays" / "cpu")
    assert done.returncode != 0 and "secrets" in done.stderr


def test_no_secret_stands_in_the_repository() -> None:
    """Only Secrets of generators exist, and what they read is made by make-secrets.sh and ignored by git."""
    for path in (ROOT / "deploy" / "kubernetes").rglob("*.yaml"):
        if "secrets" not in path.relative_to(ROOT).parts:
            assert "kind: Secret\n" not in path.read_text(), path
    assert "/secrets/" in (ROOT / "deploy" / "kubernetes" / ".gitignore").read_text().splitlines()
    held = sorted(p.name for p in (ROOT / "deploy" / "kubernetes" / "secrets.example").rglob("*") if p.is_file())
    assert held == ["kustomization.yaml"] * 3
    assert len(data_of("cpu", "Secret", "reward-key")["reward.key"]) > 60


def test_the_object_store_and_the_loader_render_too(tmp_path: Path) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(tree(), copied)
    overlay = copied / "overlays" / "cpu" / "kustomization.yaml"
    overlay.write_text(overlay.read_text() + "components: [../../components/object-store]\n")
    for folder, name in ((overlay.parent, "object-store"), (copied / "loader", "loader")):
        done = build(folder)
        documents = list(yaml.safe_load_all(done.stdout))
        for document in documents:
            validate(document, NEWEST)
        assert name in [document["metadata"]["name"] for document in documents], done.stderr
