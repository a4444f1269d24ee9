"""Writes the alerts as a PrometheusRule for clusters, from deploy/prometheus/alerts.yml, which people read and change.

`--check` only compares. One rule differs there: the learner is a Job, which has no target when the run is over. Knows
no metric by name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
SOURCE = DEPLOY / "prometheus" / "alerts.yml"
WRITTEN = DEPLOY / "kubernetes" / "components" / "monitoring" / "alerts.yaml"
HEAD = """\
# Generated from deploy/prometheus/alerts.yml by scripts/generate_kubernetes_alerts.py; do not edit. MMR1NoTarget leaves
# the learner out, which is a Job: when the run is over there is none.
"""
# Of MMR1NoTarget: what goes, and what is said instead.
CHANGES = {
    "expr": (' or absent(up{job="learner"})', ""),
    "description": (
        "correct the names in prometheus.yml.",
        "see whether this Prometheus chooses its ServiceMonitor.",
    ),
}
Document = dict[str, Any]


def prometheus_rule() -> str:
    groups: list[Document] = yaml.safe_load(SOURCE.read_text())["groups"]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule["alert"] == "MMR1NoTarget"]
    for place, name in ((rule, "expr"), (rule["annotations"], "description")):
        old, new = CHANGES[name]
        if old not in place[name]:
            sys.exit(f"{SOURCE}: {name} of MMR1NoTarget has no {old!r}; change it in {Path(__file__).name} too")
        place[name] = place[name].replace(old, new)
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mmr1"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(document, sort_keys=False, width=110)


def main() -> int:
    wanted = prometheus_rule()
    if "--check" in sys.argv[1:]:
        if WRITTEN.exists() and WRITTEN.read_text() == wanted:
            return 0
        print(f"{WRITTEN} is not what alerts.yml says: python scripts/{Path(__file__).name}", file=sys.stderr)
        return 1
    WRITTEN.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
