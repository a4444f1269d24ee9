"""The names in a PromQL expression that must be ours: metrics and labels. Whether it is PromQL, Prometheus says."""

from __future__ import annotations

import re
from collections.abc import Mapping

KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless"}
SELECTOR = re.compile(r"\b(mmr1_\w+|up)\b(\{[^}]*\})?")


def selectors(expression: str) -> list[str]:
    """Each metric with its matchers, as it stands there. All metrics but `up` begin with mmr1_."""
    return [found[0] for found in SELECTOR.finditer(expression)]


def unknown_names(expression: str, known: Mapping[str, set[str]]) -> list[str]:
    """Identifiers that are no metric, no label and no function of it; and labels that their metric does not have."""
    labels = set().union(*known.values())
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\b[\d.]+(e[+-]?\d+)?\b', " ", expression)  # without texts and numbers
    names = re.findall(r"([A-Za-z_]\w*)\b(?!\s*(?:\(|by\b|without\b))", bare)  # a function is followed by these
    wrong = [name for name in names if name not in known and name not in labels and name.lower() not in KEYWORDS]
    for name, matchers in SELECTOR.findall(expression):
        matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers))
        wrong += [f"{name}{{{label}}}" for label in matched if label not in known.get(name, set())]
    return wrong
