"""What the tests on GPUs share: how many there are, and a place for what they measure. CI does not run them.

    python -m pytest -m gpu tests/gpu -s           # MMR1_GPU_RECORDS=FILE keeps the figures, one JSON line each

Which GPUs: CUDA_VISIBLE_DEVICES. A test that needs more than there are is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmr1.local.gpus import visible_gpus
from mmr1.local.plan import has_cuda

GPUS = visible_gpus(os.environ) if has_cuda(os.environ) else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test here says with `gpus(N)` how many it needs; the default is one."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        marker = item.get_closest_marker("gpus")
        needed = marker.args[0] if marker else 1
        if len(GPUS) < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPUs, and {len(GPUS)} are visible"))


@pytest.fixture
def gpus() -> list[str]:
    return GPUS


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Print a figure and keep it."""

    def keep(**figures: Any) -> None:
        line = json.dumps({"test": request.node.name, **figures})
        print(f"\n{line}", flush=True)
        if path := os.environ.get("MMR1_GPU_RECORDS"):
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return keep
