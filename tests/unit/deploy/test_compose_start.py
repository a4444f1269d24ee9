"""What containers do before their program starts: deploy/compose's two scripts, with files of the test's."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 0), (143, 143)])
def test_a_learner_that_must_not_be_started_again_ends_well(tmp_path: Path, code: int, expected: int) -> None:
    assert run_start(tmp_path, f"import sys; sys.exit({code})").wait(60) == expected


def test_a_learner_is_told_to_stop(tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "pathlib.Path('up').touch()\n"
        "time.sleep(60)\n"
    )
    process = run_start(tmp_path, program)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 7


def test_nothing_starts_before_its_problems_are_drawn(tmp_path: Path) -> None:
    process = run_start(tmp_path, "open('up', 'w')", prepared="another file's")
    time.sleep(1.0)
    assert not (tmp_path / "up").exists() and process.poll() is None
    process.terminate()
    assert process.wait(30) == 143


def test_a_rollout_server_waits_for_its_secrets_alone(tmp_path: Path) -> None:
    process = run_start(tmp_path, "open('up', 'w')", prepared="another file's", role="")
    until_it_waits = time.monotonic() + 1.0
    while time.monotonic() < until_it_waits:
        assert not (tmp_path / "up").exists() and process.poll() is None
        time.sleep(0.1)
    (tmp_path / ".secrets-prepared").write_text(digest_line(tmp_path))
    assert process.wait(30) == 0 and (tmp_path / "up").exists()


def test_who_waits_for_another_runs_part_says_so_once(tmp_path: Path) -> None:
    """As after `--scale` without the RUN_CONFIG that the stack was brought up with."""
    process = run_start(tmp_path, "", prepared="another file's", tries=3)
    time.sleep(3.0)
    process.terminate()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait(30) == 143
    assert said.count("mmr1: still waiting for `prepare`") == 1 and "RUN_CONFIG" in said and said.count("\n") == 1


def test_engines_load_while_problems_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands where when `mmr1 data digits` is called, and after it; a drawing that fails leaves no mark of it."""
    volumes, config = tmp_path / "volumes", tmp_path / "run.yaml"
    for name in ("redis", "reward", "learner", "rollout"):
        (volumes / name).mkdir(parents=True)
    (tmp_path / "data").mkdir()
    config.write_text("train_file: data/digits/ocr/train.json\n")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "mmr1"
    shim.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked; ls -A {volumes}/rollout data >{tmp_path}/found; exit 3\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "deploy" / "compose" / "prepare.py")
    assert spec and spec.loader
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    prepare.VOLUMES, prepare.CONFIG = volumes, config

    assert prepare.main() == 3
    assert (tmp_path / "asked").read_text().split() == ["data", "digits", "--task", "ocr", "--out", "data/digits/ocr"]
    found = (tmp_path / "found").read_text().split()
    assert {".prepared", "rollout.token", "redis.password", "digits"} <= set(found) and found.count(".prepared") == 1
    assert not (tmp_path / "data" / ".prepared").exists()
    rules = (ROOT / "deploy" / "compose" / "users.acl").read_bytes()
    assert (volumes / "redis" / ".rules").read_text() == f"{hashlib.sha256(rules).hexdigest()}  -\n"
    first = (volumes / "rollout" / "rollout.token").read_text()
    shim.write_text("#!/bin/sh\ntouch data/digits/ocr/train.json\n")
    assert prepare.main() == 0
    assert (tmp_path / "data" / ".prepared").read_text() == digest_line(tmp_path)
    assert (volumes / "rollout" / "rollout.token").read_text() == first, "what exists stays"
    shim.write_text("#!/bin/sh\nexit 9\n")
    assert prepare.main() == 0, "nothing is drawn twice"


def digest_line(folder: Path) -> str:
    return f"{hashlib.sha256((folder / 'run.yaml').read_bytes()).hexdigest()}  -\n"


def run_start(
    folder: Path, program: str, prepared: str | None = None, role: str = "learner", tries: int = 450
) -> subprocess.Popen[bytes]:
    """deploy/compose/start.sh with files of the test's, and a learner or rollout server of this code.

    It says that it waits after so many `tries`, a fifth of a second each.
    """
    (folder / "run.yaml").write_text("num_steps: 1\n")
    (folder / ".prepared").write_text(prepared or digest_line(folder))
    for package, module in (("mmr1_learner", "train"), ("mmr1_rollout_server", "__main__")):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        (folder / package / f"{module}.py").write_text(program)
    script = (ROOT / "deploy" / "compose" / "start.sh").read_text()
    for ours, tests in (
        ("/etc/mmr1/run.yaml", "run.yaml"),
        ("/srv/mmr1/data/.prepared", ".prepared"),
        ("/secrets/.prepared", ".secrets-prepared"),
        ("-ne 450 ", f"-ne {tries} "),
    ):
        assert ours in script
        script = script.replace(ours, tests)
    (folder / "start.sh").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen(["sh", "start.sh", *role.split()], cwd=folder, env=environment, stderr=subprocess.PIPE)
