"""Which GPUs ranks and servers get. No GPU is needed to say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmr1.errors import ConfigurationError
from mmr1.local import plan as planning
from mmr1.local.gpus import VISIBLE, Placement, place, visible_gpus
from tests.models import small_config

FOUR = ["0", "1", "2", "3"]


def placed(gpus: list[str], **options: Any) -> Placement | None:
    return place(small_config(Path("model"), **options), gpus)


def test_without_a_gpu_nothing_is_placed() -> None:
    assert placed([]) is None
    with pytest.raises(ConfigurationError, match="rollout_tensor_parallel_size 2 needs GPUs, and none is visible"):
        placed([], rollout_tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        (["0"], {}, Placement("0", ("0",))),
        (["0", "1"], {}, Placement("0", ("1",))),
        (["5", "2"], {}, Placement("5", ("2",))),
        (FOUR, {"rollout_replicas": 3}, Placement("0", ("1", "2", "3"))),
        (FOUR, {"learner_processes": 2, "rollout_replicas": 2}, Placement("0,1", ("2", "3"))),
        (FOUR, {"rollout_tensor_parallel_size": 2}, Placement("0", ("1,2",))),
        (FOUR[:2], {"learner_processes": 2, "rollout_replicas": 2}, Placement("0,1", ("0", "1"))),
        (FOUR[:3], {"learner_processes": 2, "rollout_replicas": 2}, Placement("0,1", ("2", "0"))),
    ],
)
def test_ranks_first_then_servers_which_share_only_with_ranks(
    gpus: list[str], options: dict[str, Any], expected: Placement
) -> None:
    assert placed(gpus, **options) == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"learner_processes": 2}, "learner_processes 2 needs as many GPUs"),
        ({"rollout_replicas": 2}, "rollout_replicas 2 x rollout_tensor_parallel_size 1 need as many GPUs"),
        ({"rollout_tensor_parallel_size": 2}, "rollout_replicas 1 x rollout_tensor_parallel_size 2 need"),
    ],
)
def test_too_few_gpus_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        placed(["0"], **options)


def test_what_is_visible_is_what_the_environment_says_and_else_what_the_kernel_has(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({VISIBLE: "3,GPU-abc"}, tmp_path) == ["3", "GPU-abc"]
    assert visible_gpus({VISIBLE: ""}, tmp_path) == visible_gpus({VISIBLE: "-1"}, tmp_path) == []


def test_each_service_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "has_cuda", lambda _: True)
    config = small_config(
        Path("model"), run_dir=tmp_path, learner_processes=2, rollout_replicas=2, redis_url="redis://r"
    )
    plan = planning.plan(config, {VISIBLE: "4,5,6,7"})
    assert [service.processes[0].environment[VISIBLE] for service in plan.rollouts] == ["6", "7"]
    assert {process.environment[VISIBLE] for process in plan.learner.processes} == {"4,5"}
