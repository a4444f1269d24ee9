"""docs/observability.md names the alerts, dashboards, metrics and spans that are there, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "observability.md").read_text()


def test_alerts_and_their_severities() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}
    assert dict(re.findall(r"^\| (MMR1\w+) \| (\w+) \|", TEXT, re.MULTILINE)) == rules


def test_dashboards() -> None:
    titles = {
        json.loads(path.read_text())["title"].removeprefix("MMR1 / ")
        for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }
    section = TEXT.partition("## Dashboards")[2].partition("## Alerts")[0]
    assert set(re.findall(r"^\| ([A-Z]\w+) \|", section, re.MULTILINE)) == titles


def test_ports_are_those_of_the_configuration() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    found = [(job["job_name"], job["dns_sd_configs"][0]["port"]) for job in jobs if "dns_sd_configs" in job]
    assert found == [("reward-server", 8000), ("rollout-server", 9400)]
    assert jobs[-1]["static_configs"] == [{"targets": ["learner:9390"]}]
    for name, port in (*found, ("learner", 9390)):
        assert f"`{name}`" in TEXT and str(port) in TEXT


def test_spans_are_those_of_the_code() -> None:
    files = [
        "services/mmr1/streams/groups.py",
        "services/mmr1/streams/prompts.py",
        "rollout_server/mmr1_rollout_server/worker.py",
        "learner/mmr1_learner/leader.py",
    ]
    source = "".join((ROOT / name).read_text() for name in files)
    made = set(re.findall(r'\b(?:span|record_span)\(\s*"(\w+)"', source))
    made |= set(re.findall(r'begin_trace\([\w.]+, "(\w+)"', source))
    section = TEXT.partition("## Traces")[2]
    assert set(re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE)) == made
    attributes = set(re.findall(r"(?:span|record_span)\([^)]*?, (\w+)=", source))
    assert {f"mmr1.{name}" for name in attributes} <= set(re.findall(r"`(mmr1\.\w+)`", section))
