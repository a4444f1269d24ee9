"""`compose.reward.yml`: the reward server alone, and two other projects' requests against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compose.stack import Stack, until
from tests.conftest import free_port

pytestmark = [pytest.mark.compose, pytest.mark.timeout(300)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Stack, int]]:
    port = free_port()
    made = Stack(tmp_path, ("compose.reward.yml",), {"REWARD_PORT": str(port)})
    made.down()
    try:
        yield made, port
    finally:
        made.down()


def test_two_peers_are_answered(alone: tuple[Stack, int]) -> None:
    stack, port = alone

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    stack.compose("up", "-d", "--no-build")
    until("the server is ready", ready, stack, 120)
    printed = stack.compose("--profile", "peers", "run", "--rm", "peers")
    assert "OpenRLHF: POST" in printed and "slime: POST" in printed
