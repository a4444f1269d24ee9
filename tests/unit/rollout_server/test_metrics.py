"""What a rollout server shows that is counted elsewhere."""

from __future__ import annotations

from pathlib import Path

from mmr1_rollout_server.server import Server
from tests.conftest import free_port
from tests.models import small_config


async def test_running_prompts_are_those_that_admission_counts(tmp_path: Path) -> None:
    server = Server(small_config(tmp_path), "rollout-0", free_port(), free_port())

    def shown() -> float | None:
        return server.metrics.registry.get_sample_value("mmr1_rollout_running_prompts")

    assert shown() == 0
    with server.policy.admission.enter(), server.policy.admission.enter():
        assert shown() == 2
    assert shown() == 0
