"""Writes Grafana's dashboards from deploy/grafana/dashboards.yaml, which people read and change.

`--check` only compares. Knows Grafana's form of a dashboard (schema 39, Grafana 11) and no metric by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of Grafana's grid
HEIGHTS = {"timeseries": 8, "stat": 4}
MOST_IN_A_LINE, USUAL = 4, 3  # panels of a row that stand in one line, and how they stand when there are more
Document = dict[str, Any]


def dashboards() -> dict[str, str]:
    """The text of each file, by its name."""
    described = yaml.safe_load((FOLDER / "dashboards.yaml").read_text())
    return {
        f"{name}.json": json.dumps(_dashboard(name, content), indent=1) + "\n" for name, content in described.items()
    }


def _dashboard(name: str, content: Document) -> Document:
    return {
        "uid": f"mmr1-{name}",
        "title": content["title"],
        "description": content["about"],
        "tags": ["mmr1"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair in all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [{"type": "dashboards", "title": "MMR1", "tags": ["mmr1"], "asDropdown": True, "includeVars": True}],
        "templating": {"list": list(_variables(content.get("servers", False)))},
        "panels": list(_panels(content["rows"])),
    }


def _variables(servers: bool) -> Iterator[Document]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    if servers:
        query = "label_values(mmr1_rollout_state, instance)"
        yield {
            "name": "server",
            "label": "Rollout server",
            "type": "query",
            "datasource": DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": "servers"},
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def _panels(rows: list[Document]) -> Iterator[Document]:
    top = number = 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row["title"], "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        per_line = len(row["panels"]) if len(row["panels"]) <= MOST_IN_A_LINE else USUAL
        for first in range(0, len(row["panels"]), per_line):
            line = row["panels"][first : first + per_line]
            height = max(HEIGHTS[panel.get("kind", "timeseries")] for panel in line)
            for column, panel in enumerate(line):
                number += 1
                width = WIDTH // per_line
                yield _panel(panel, number, {"x": column * width, "y": top, "w": width, "h": height})
            top += height


def _panel(panel: Document, number: int, place: dict[str, int]) -> Document:
    kind = panel.get("kind", "timeseries")
    stacked = panel.get("stack", False)
    drawing = {
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    return {
        "id": number,
        "type": kind,
        "title": panel["title"],
        "description": panel.get("about", ""),
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.get("unit", "none"), "custom": drawing if kind == "timeseries" else {}},
            "overrides": [],
        },
        "options": _options(kind),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                # A range would bring back every series of the last hours: phases that are over, learners that are gone.
                "instant": kind == "stat",
                "range": kind != "stat",
            }
            for index, (legend, query) in enumerate(panel["queries"].items())
        ],
    }


def _options(kind: str) -> Document:
    if kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "textMode": "value_and_name", "colorMode": "value", "graphMode": "none"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def main() -> int:
    wanted, folder = dashboards(), FOLDER / "dashboards"
    if "--check" in sys.argv[1:]:
        held = {path.name: path.read_text() for path in folder.glob("*.json")}
        if held == wanted:
            return 0
        print(f"{folder} is not what dashboards.yaml says: python scripts/generate_dashboards.py", file=sys.stderr)
        return 1
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
