"""What set-up refuses before it changes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up reads, in a folder without an environment."""
    for name in ("scripts", "constraints"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for pyproject in REPOSITORY.glob("*/pyproject.toml"):
        (tmp_path / pyproject.parent.name).mkdir(exist_ok=True)
        shutil.copy(pyproject, tmp_path / pyproject.parent.name)
    return tmp_path


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The interpreter that the environment of this test was made with has all that set-up needs.
    base = {**os.environ, "PYTHON": os.path.realpath(sys.executable), "MAKEFLAGS": "", "MAKELEVEL": "0"}
    return subprocess.run(command, cwd=checkout, env=base | environment, capture_output=True, text=True, timeout=60)


def test_a_second_device_in_one_environment_is_refused(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".mmr1-device").write_text("cuda\n")
    result = run(checkout, "scripts/setup.sh", "cpu")
    assert result.returncode == 2
    assert "holds the cuda stack" in result.stderr and "rm -r .venv" in result.stderr
    shown = run(checkout, "make", "--dry-run", "setup")
    assert "scripts/setup.sh cuda" in shown.stdout, "what the environment was made for is the default"


def test_what_the_system_lacks_is_said_at_once(checkout: Path) -> None:
    assert run(checkout, "scripts/setup.sh", "--check").returncode == 0
    assert not (checkout / ".venv").exists()
    result = run(checkout, "scripts/setup.sh", "--check", PYTHON="/bin/false")
    assert result.returncode == 2 and "PYTHON=/bin/false is no Python 3.11 or 3.12" in result.stderr
    result = run(checkout, "scripts/setup.sh", "tpu")
    assert result.returncode == 2 and "DEVICE is cpu or cuda" in result.stderr
    tools = checkout / "bin"
    tools.mkdir()
    for name in ("bash", "sed", "cat", "dirname", "sha256sum", "grep", "ldconfig"):
        found = shutil.which(name, path=os.environ["PATH"] + ":/sbin")
        assert found, name
        (tools / name).symlink_to(found)
    result = run(checkout, "scripts/setup.sh", "--check", PATH=str(tools))
    assert result.returncode == 2 and "apt-get install -y g++" in result.stderr, result.stderr
