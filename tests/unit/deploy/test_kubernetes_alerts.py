"""The alerts as a cluster gets them: those of deploy/prometheus, but for what a Job makes different.

When each fires is test_alerts.py's; that the object is of its kind, test_kubernetes_schemas.py's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.kubernetes_overlays import ROOT, matches, named, objects
from tests.unit.deploy.prometheus import program

MONITORED = ("gpu", "multi-node")


def rules(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def in_the_cluster(overlay: str) -> list[dict[str, Any]]:
    return list(named(overlay, "PrometheusRule", "mmr1")["spec"]["groups"])


def test_the_file_is_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_kubernetes_alerts.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("overlay", MONITORED)
def test_they_are_those_of_one_machine_but_for_the_learner_that_is_done(overlay: str) -> None:
    ours = rules(yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"])
    theirs = rules(in_the_cluster(overlay))
    assert list(theirs) == list(ours)
    assert [name for name in ours if ours[name] != theirs[name]] == ["MMR1NoTarget"]
    absent = {name: re.findall(r'absent\(up\{job="([\w-]+)"\}\)', rule["expr"]) for name, rule in theirs.items()}
    assert {name: jobs for name, jobs in absent.items() if jobs} == {
        "MMR1NoTarget": [each["metadata"]["name"] for each in objects(overlay, "Deployment")]
    }
    assert "prometheus.yml" not in str(theirs), "a cluster has none"


@pytest.mark.parametrize("overlay", MONITORED)
def test_the_jobs_that_they_name_are_services_that_are_scraped(overlay: str) -> None:
    """Without `jobLabel` the operator calls a job as its Service."""
    monitors = [each["spec"] for each in objects(overlay, "ServiceMonitor")]
    assert not any("jobLabel" in each for each in monitors)
    scraped = {
        service["metadata"]["name"]
        for service in objects(overlay, "Service")
        for each in monitors
        if matches(each["selector"], service["metadata"].get("labels", {}))
    }
    expressions = " ".join(rule["expr"] for rule in rules(in_the_cluster(overlay)).values())
    jobs = {job for names in re.findall(r'job=~?"([^"]+)"', expressions) for job in names.split("|")}
    assert jobs == scraped


def test_prometheus_takes_them(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": in_the_cluster("gpu")}))
    done = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules(in_the_cluster('gpu')))} rules found" in done.stdout
