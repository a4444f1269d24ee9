"""docs/configuration.md says what RunConfig says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmr1.config import RunConfig

ROOT = Path(__file__).resolve().parents[3]


def test_page_is_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_configuration_page.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_page_names_every_option() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [name for name in RunConfig.model_fields if f"| `{name}` |" not in page] == []
