"""What stands beside the stack cannot change how the run ends, and nothing is cleared before everything is checked."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from mmr1.config import RunConfig, load_config
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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What the stack would run; no process is started and no input is checked."""
    found: list[RunConfig] = []

    async def run(config: RunConfig, plan: Plan, log: MergedLog, companion: object) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr(stack, "_run", run)
    monkeypatch.setattr(stack, "check", lambda _: None)
    return found


def test_a_stack_makes_a_token_of_its_own_that_others_cannot_read(
    started: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, run_dir=tmp_path / "run")
    tokens = set()
    for _ in range(2):
        assert stack.run_stack(config, Console(file=io.StringIO())) == 0
        path = tmp_path / "run" / "rollout.token"
        assert started[-1].rollout_token_file == path
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text().strip()
        assert len(token) == 64
        assert token not in (tmp_path / "run" / "config.yaml").read_text()
        tokens.add(token)
    assert len(tokens) == 2  # each start its own
    assert load_config(tmp_path / "run" / "config.yaml").rollout_token_file == path

    path.unlink()
    left = load_config(tmp_path / "run" / "config.yaml")
    assert stack.run_stack(left, Console(file=io.StringIO())) == 0, "what an earlier start left is a configuration"
    assert path.exists()

    monkeypatch.setenv("MMR1_ROLLOUT_TOKEN", "a-token-of-the-users-own")
    stack.run_stack(config, Console(file=io.StringIO()))
    assert started[-1].rollout_token_file is None
