"""A checkout whose files only its owner may read: images hold readable ones, and containers name what they cannot read.

No image is built and no container started: Dockerfiles and compose files are read, and what guards the mounts is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.test_compose_files import FILES, ROOT, services

NOBODY = 65534
MOUNTED = {  # what a program reads of what is mounted; data, models and runs are the user's
    "redis": {"deploy/compose/users.acl"},
    "prepare": {"deploy/compose/prepare.py", "deploy/compose/users.acl", "examples/counting.yaml"},
    "rollout-server": {"deploy/compose/start.sh", "examples/counting.yaml"},
    "learner": {"deploy/compose/start.sh", "examples/counting.yaml"},
    "prometheus": {"deploy/prometheus/*.yml"},
    "grafana": {"deploy/grafana/provisioning/*/*.yml", "deploy/grafana/dashboards/*.json"},
    "peers": {"deploy/compose/peers.py"},
}


@pytest.mark.parametrize("service", ["learner", "rollout_server", "reward_server"])
def test_an_image_takes_nothing_of_the_checkout_as_it_lies(service: str) -> None:
    """A build stage opens it first: there no layer of the image becomes larger by it."""
    stages = (ROOT / service / "Dockerfile").read_text().split("\nFROM ")[1:]
    named = {stage.splitlines()[0].rpartition(" AS ")[2]: stage for stage in stages[:-1]}
    copies = [line.split() for line in re.findall(r"^COPY .*", stages[-1], re.MULTILINE)]
    assert copies
    for _, origin, path, _ in copies:
        assert origin.startswith("--from="), path
        stage = named[origin.removeprefix("--from=")]
        straight = re.search(rf"^COPY (?!--).* {re.escape(path)}$", stage, re.MULTILINE)
        assert not straight or f"\nRUN chmod -R a+rX {path}\n" in stage[straight.end() :], path


def test_nothing_is_copied_into_the_environment_with_its_rights() -> None:
    script = (ROOT / "scripts" / "container_environment.sh").read_text()
    assert not re.search(r"^\s*cp ", script, re.MULTILINE)
    assert re.search(r"^\s*install -m 0644 scripts/", script, re.MULTILINE)


def guards() -> Iterator[Any]:
    for file in FILES:
        for name, service in services(file).items():
            if any(volume.startswith((".", "$")) for volume in service.get("volumes", [])):
                yield pytest.param(name, service, id=name)


@pytest.mark.parametrize(("name", "service"), list(guards()))
def test_a_container_looks_first_whether_it_can_read_what_is_mounted(name: str, service: dict[str, Any]) -> None:
    shell, flag, script, files, *_ = service["entrypoint"]
    assert (shell, flag, script) == ("sh", "-c", guard())
    mounts = {}
    for volume in service["volumes"]:
        source, target = re.fullmatch(r"(.*?):(/[^:]*)(?::ro)?", volume).groups()  # type: ignore[union-attr]
        mounts[target] = re.sub(r"^\$\{RUN_CONFIG:-(.*)\}$", r"\1", source)
    found = set()
    for file in files.split():
        (target,) = [target for target in mounts if file == target or file.startswith(f"{target}/")]
        found.add(os.path.normpath(mounts[target] + file.removeprefix(target)))
    assert found == MOUNTED[name]
    for pattern in found:
        assert list(ROOT.glob(pattern)), pattern


def test_every_file_of_a_mounted_folder_is_looked_for() -> None:
    for folder in ("prometheus", "grafana/provisioning", "grafana/dashboards"):
        held = {path for path in (ROOT / "deploy" / folder).rglob("*") if path.is_file()}
        patterns = MOUNTED[folder.partition("/")[0]]
        assert held <= {path for pattern in patterns for path in ROOT.glob(pattern)}


def guard() -> str:
    """The same in each compose file."""
    (found,) = {yaml.safe_load((ROOT / file).read_text())["x-readable"] for file in FILES}
    return str(found)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Which others may enter; pytest's own may not be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def guarded(files: str, *command: str) -> subprocess.CompletedProcess[str]:
    script = guard().replace("$$", "$")  # as compose does
    other = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    return subprocess.run(["sh", "-c", script, files, *command], capture_output=True, text=True, **other)  # type: ignore[call-overload]


def test_what_is_readable_is_no_matter(folder: Path) -> None:
    (folder / "a.yml").write_text("")
    done = guarded(f"{folder}/*.yml", "printf", "<%s>", "two words", "--config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "<two words><--config>", "")


@pytest.mark.parametrize("closed", ["file", "folder", "no file"])
def test_what_is_not_is_named_with_the_remedy(folder: Path, closed: str) -> None:
    (folder / "files").mkdir()
    (folder / "files" / "a.yml").write_text("")
    (folder / "files" / "b.yml").touch()
    if closed == "file":
        (folder / "files" / "b.yml").chmod(0)
    elif closed == "folder":
        (folder / "files").chmod(0)
    else:  # what an engine mounts where a RUN_CONFIG is not there
        (folder / "files" / "b.yml").unlink()
        (folder / "files" / "b.yml").mkdir()
    done = guarded(f"{folder}/files/a.yml {folder}/files/b.yml", "echo", "started")
    named = folder / "files" / ("a.yml" if closed == "folder" else "b.yml")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert line.startswith(f"mmr1: error: {named} is no file that user {user} can read; ")
    assert "chmod -R a+rX deploy examples" in line
