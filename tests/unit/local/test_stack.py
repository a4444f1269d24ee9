"""What stands beside the stack cannot change how the run ends, and nothing is cleared before everything is checked."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.local import stack
from mmr1.local.logs import MergedLog
from mmr1.local.plan import Plan
from tests.models import small_config


@pytest.mark.parametrize("code", [0, 1, 130])
async def test_a_live_view_that_fails_is_said_and_changes_nothing(
    code: int, log: MergedLog, screen: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()

    async def finish(config: RunConfig, plan: Plan, log: MergedLog) -> int:
        await failed.wait()
        return code

    async def fail() -> None:
        failed.set()
        raise ValueError("half a line")

    monkeypatch.setattr(stack, "supervise", finish)
    assert await stack._run(small_config(tmp_path), None, log, fail) == code  # type: ignore[arg-type]
    assert "the live view failed: ValueError: half a line" in screen.getvalue()


def test_a_wrong_input_leaves_what_was_in_the_folder(tmp_path: Path) -> None:
    config = small_config(tmp_path / "nowhere", run_dir=tmp_path / "run")
    cleared: list[bool] = []
    with pytest.raises(ConfigurationError, match="nowhere"):
        stack.run_stack(config, Console(file=io.StringIO()), clear=lambda: cleared.append(True))
    assert not cleared
