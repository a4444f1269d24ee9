"""What the documents point at exists: relative links everywhere, and repository paths in backquotes in docs/walk.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_walk_names_only_files_that_exist() -> None:
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)+)`", (ROOT / "docs" / "walk.md").read_text())
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).is_file()] == []
