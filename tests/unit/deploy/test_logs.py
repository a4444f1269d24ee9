"""MMR1_LOG_JSON=1: each line of a service is one JSON object that names run, process, group and version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.deploy.exposed import ROOT

ALWAYS = {"timestamp", "level", "event", "service"}


def logged(which: str, url: str, folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.deploy.logging_services", which, url, str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def as_json(lines: list[str]) -> list[dict[str, Any]]:
    """All of them; a line that is no object fails."""
    records = [json.loads(line) for line in lines]
    assert records and all(set(record) >= ALWAYS for record in records)
    return records


def of(records: list[dict[str, Any]], event: str) -> dict[str, Any]:
    return next(record for record in records if record["event"] == event)


def test_a_rollout_servers_lines_name_the_group_and_the_version(redis_url: str, tmp_path: Path) -> None:
    records = as_json(logged("rollout", redis_url, tmp_path, MMR1_LOG_JSON="1"))
    assert {(record["service"], record["run"]) for record in records} == {("rollout-7", "test")}
    for event, prompt in (("prompt_dead", "0/0"), ("scoring_failed", "1/0")):
        found = of(records, event)
        assert (found["prompt"], found["version"]) == (prompt, "1.4"), event
    assert "prompt" not in of(records, "state"), "a line that is of no group names none"


def test_a_learners_lines_name_the_step_and_the_version(redis_url: str, tmp_path: Path) -> None:
    records = as_json(logged("learner", redis_url, tmp_path, MMR1_LOG_JSON="1"))
    assert {(record["service"], record["run"]) for record in records} == {("learner-0", "test")}
    found = of(records, "group dropped")
    assert (found["prompt"], found["step"], found["version"]) == ("0/0", 1, "1.0")


@pytest.mark.parametrize("which", ["rollout", "learner"])
def test_without_it_lines_are_as_people_read_them(which: str, redis_url: str, tmp_path: Path) -> None:
    lines = logged(which, redis_url, tmp_path, MMR1_LOG_JSON="0")
    assert all(line.startswith("timestamp=") and " level=" in line and " service=" in line for line in lines)
    assert not any(" run=" in line or " step=" in line for line in lines)


def test_a_reward_servers_lines(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mmr1_reward_server", "--port", "0", "--workers", "1", "--access-log"],
        cwd=ROOT,
        env={**os.environ, "MMR1_LOG_JSON": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        listening = as_json([line])[0]
        assert (listening["event"], listening["service"]) == ("listening", "reward") and listening["port"] > 0
    finally:
        process.terminate()
        rest = process.communicate(timeout=30)[0]
    assert [record["event"] for record in as_json(rest.splitlines())] == ["stopped"]
