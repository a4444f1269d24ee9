"""Every query of every dashboard finds what it asks for, in a real Prometheus that scrapes the services' metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.exposed import ROOT, expositions, labels_by_metric
from tests.unit.deploy.prometheus import Prometheus, running_prometheus
from tests.unit.deploy.promql import selectors, unknown_names

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
# Of the client library for Python, and times at which a counter began: nobody looks at them.
UNSHOWN = re.compile(r"(python|process)_|.*_created$")


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']}", target


def filled(expression: str) -> str:
    """As Grafana sends it, with all servers chosen."""
    return expression.replace("$server", ".*")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expositions(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prometheus(texts: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(texts, tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def test_there_are_four() -> None:
    titles = {name: dashboard["title"] for name, dashboard in DASHBOARDS.items()}
    assert titles == {name: f"MMR1 / {name.title()}" for name in ("queue", "reward", "rollout", "run")}


def test_the_files_are_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_dashboards.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_panel_of_figures_shows_what_is_and_not_what_was() -> None:
    """A range would bring back the phases that are over and the learners that are gone."""
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                assert (target["instant"], target["range"]) == (panel["type"] == "stat", panel["type"] != "stat")


def test_every_name_is_exposed_by_a_service(texts: dict[str, bytes]) -> None:
    known = labels_by_metric(texts)
    wrong = {place: unknown_names(filled(target["expr"]), known) for place, target in targets()}
    assert {place: names for place, names in wrong.items() if names} == {}


def test_every_query_finds_series_and_its_legend_their_labels(prometheus: Prometheus) -> None:
    num_queries = 0
    for place, target in targets():
        series = prometheus.query(filled(target["expr"]))
        assert series, f"{place}: nothing is found by {target['expr']}"
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        lacking = [labels - set(found["metric"]) for found in series]
        assert not any(lacking), f"{place}: the legend names {labels}, and the series have {series[0]['metric']}"
        shown = {tuple(found["metric"][label] for label in labels) for found in series}
        assert len(shown) == len(series), f"{place}: several series have one name"
        num_queries += 1
    assert num_queries > 40


def test_every_selector_alone_finds_series(prometheus: Prometheus) -> None:
    """Of `a / b` or `a or b` the whole may have an answer where a part of it finds nothing."""
    for place, target in targets():
        for selector in selectors(filled(target["expr"])):
            assert prometheus.query(selector), f"{place}: nothing is found by {selector}"


def test_every_metric_of_the_services_is_on_a_dashboard(texts: dict[str, bytes]) -> None:
    asked = {re.split(r"\{", selector)[0] for _, target in targets() for selector in selectors(target["expr"])}
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    exposed = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels_by_metric(texts) if name != "up"}
    assert sorted(name for name in exposed - asked if not UNSHOWN.match(name)) == []


def test_the_choice_of_servers_is_among_those_that_are_there(prometheus: Prometheus) -> None:
    (query,) = [
        variable["definition"]
        for dashboard in DASHBOARDS.values()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    parts = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
    assert parts and all(parts[2] in found["metric"] for found in prometheus.query(parts[1]))
    assert prometheus.query(parts[1])


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_lie_beside_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_what_grafana_is_given_fits_together() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/mmr1.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (provider["type"], source["type"], source["jsonData"]["timeInterval"]) == ("file", "prometheus", scraped)
    assert Path(provider["options"]["path"]).is_absolute()


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("mmr1_learner_stepp", ["mmr1_learner_stepp"]),
        ("sum by (outcom) (rate(mmr1_reward_items_total[5m]))", ["outcom"]),
        ('mmr1_rollout_state{status="serves"}', ["mmr1_rollout_state{status}"]),
        ('mmr1_learner_step{state!="serves"}', ["mmr1_learner_step{state}"]),
        ('rate(mmr1_reward_items_total{outcome=~"a|b"}[5m]) * 1e3 > on (instance) 0.5 * up', []),
    ],
)
def test_a_wrong_name_is_seen(texts: dict[str, bytes], expression: str, wrong: list[str]) -> None:
    known = labels_by_metric(texts)
    assert set(unknown_names(expression, known)) >= set(wrong)
    assert bool(unknown_names(expression, known)) == bool(wrong)
