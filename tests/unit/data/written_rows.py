"""A dataset of a few rows, each a good one with something changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def written(path: Path, good: dict[str, Any], *changes: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(good | change) for change in changes) + "\n")
    return path
