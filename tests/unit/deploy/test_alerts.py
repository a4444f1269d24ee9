"""The alerts fire when they should and not else, by promtool; what they ask for is exposed, by a real Prometheus."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.exposed import JOBS, ROOT, expositions, labels_by_metric
from tests.unit.deploy.prometheus import program, running_prometheus
from tests.unit.deploy.promql import selectors, unknown_names

FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
CASES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
SCRAPE_SECONDS = 20.0
PROMETHEUS: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expositions(tmp_path_factory.mktemp("run"))


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_files() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_and_does_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_each_alert_has_a_case_of_both() -> None:
    seen: dict[str, set[bool]] = {rule["alert"]: set() for rule in RULES}
    for case in CASES:
        for check in case["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)", alertstate="firing"', check["expr"])
            seen[name].add(bool(check["exp_samples"]))
    assert {name for name, cases in seen.items() if cases != {True, False}} == set()


def test_the_series_of_the_cases_are_those_that_services_expose(texts: dict[str, bytes]) -> None:
    known = labels_by_metric(texts)
    series = [entry["series"] for case in CASES for entry in case["input_series"]]
    assert {one: unknown_names(one, known) for one in series if unknown_names(one, known)} == {}
    jobs = {job for one in series for job in re.findall(r'job="([^"]+)"', one)}
    assert jobs == set(JOBS)


def test_each_alert_says_what_to_do(texts: dict[str, bytes]) -> None:
    known = labels_by_metric(texts)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"} and len(rule["annotations"]["description"]) > 60
        assert unknown_names(rule["expr"], known) == [], rule["alert"]


def test_a_summary_names_labels_that_its_alert_has() -> None:
    """As it fires in the cases: one label that is not there would be an empty word."""
    labels: dict[str, set[str]] = {}
    for case in CASES:
        for check in case["promql_expr_test"]:
            for sample in check["exp_samples"]:
                (name,) = re.findall(r'alertname="(\w+)"', sample["labels"])
                found = set(re.findall(r'(\w+)="', sample["labels"]))
                labels[name] = labels.get(name, found) & found
    for rule in RULES:
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"] + rule["annotations"]["description"]))
        assert named <= labels[rule["alert"]], rule["alert"]


def test_every_selector_finds_series(texts: dict[str, bytes], tmp_path: Path) -> None:
    """In a Prometheus that scrapes the learner in one phase after the other: it shows one at a time."""
    wanted = {selector: rule["alert"] for rule in RULES for selector in selectors(rule["expr"])}
    found: set[str] = set()
    scraped = dict(texts)
    with running_prometheus(scraped, tmp_path) as prometheus:
        for phase in ("training", "loading", "paused"):
            scraped["learner"] = expositions(tmp_path, phase)["learner"]
            deadline = time.monotonic() + SCRAPE_SECONDS
            while not prometheus.query(f'mmr1_learner_phase{{phase="{phase}"}}'):
                assert time.monotonic() < deadline, phase
                time.sleep(0.1)
            found |= {selector for selector in wanted if prometheus.query(selector)}
    assert {selector: wanted[selector] for selector in wanted.keys() - found} == {}


def test_the_jobs_are_those_that_are_scraped() -> None:
    assert [job["job_name"] for job in PROMETHEUS["scrape_configs"]] == list(JOBS)
    named = {job for rule in RULES for job in re.findall(r'job=~?"([^"]+)"', rule["expr"])}
    assert {job for names in named for job in names.split("|")} == set(JOBS)
