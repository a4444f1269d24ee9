"""What each program is called with, and in which environment."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path

import pytest

from mmr1.config import RunConfig, load_config, save_config
from mmr1.errors import ConfigurationError
from mmr1.local import plan as planning
from mmr1.local.plan import child_environment, evaluation_plan, plan
from mmr1_rollout_server.server import DRAIN_SECONDS
from mmr1_rollout_server.worker import RETRY_SECONDS

REQUIRED = ["--model", "m", "--train_file", "t.json", "--num_steps", "1", "--per_device_batch_size", "8"]


def config(*arguments: str) -> RunConfig:
    return load_config(None, [*REQUIRED, *arguments])


def test_a_gang_of_ranks_shares_one_meeting_point() -> None:
    learner = plan(config("--learner_processes", "2", "--learner_master_port", "4321"), {}).learner
    assert [process.name for process in learner.processes] == ["learner-0", "learner-1"]
    for rank, process in enumerate(learner.processes):
        assert process.command[-4:] == ["-m", "mmr1_learner.train", "--config", "runs/run/config.yaml"]
        shown = {name: process.environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
        assert shown == {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": "4321"}


def test_every_rollout_server_has_ports_of_its_own() -> None:
    ports = ("--rollout_port", "500", "--learner_metrics_port", "900")
    rollouts = plan(config("--rollout_replicas", "2", *ports), {}).rollouts
    assert [spec.name for spec in rollouts] == ["rollout-0", "rollout-1"]
    assert [spec.processes[0].command[-4:] for spec in rollouts] == [
        ["--port", "500", "--metrics-port", "901"],
        ["--port", "501", "--metrics-port", "902"],
    ]


def test_a_rollout_server_is_not_killed_before_it_has_drained_and_ended_its_engine() -> None:
    (rollout,) = plan(config(), {}).rollouts
    engine = ast.parse(Path(str(files("mmr1_rollout_server") / "engine.py")).read_text())  # to import it loads vLLM
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in engine.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    leaving = 5 * RETRY_SECONDS  # for what is cancelled, the loops, and Redis' answer
    others = 1.0 + 5.0  # gRPC's grace, and what the engine has left running
    assert rollout.stop_deadline_seconds > DRAIN_SECONDS + leaving + constants["ENGINE_EXIT_SECONDS"] + others


def test_existing_services_are_not_started() -> None:
    both = plan(config("--redis_url", "redis://elsewhere/0", "--reward_url", "http://elsewhere"), {})
    assert both.redis is None and both.reward is None


def test_an_evaluation_starts_neither_redis_nor_a_learner() -> None:
    services = evaluation_plan(config("--rollout_replicas", "2"), starts_rollouts=True, environment={})
    assert services.reward is not None and len(services.rollouts) == 2
    assert all("--serve-base-weights" in spec.processes[0].command for spec in services.rollouts)
    assert not any("--serve-base-weights" in spec.processes[0].command for spec in plan(config(), {}).rollouts)
    running = evaluation_plan(config("--reward_url", "http://elsewhere"), starts_rollouts=False, environment={})
    assert running.reward is None and running.rollouts == ()


def test_servers_of_an_evaluation_get_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "has_cuda", lambda _: True)
    services = evaluation_plan(
        config("--rollout_replicas", "2"), starts_rollouts=True, environment={"CUDA_VISIBLE_DEVICES": "4,6"}
    )
    assert [spec.processes[0].environment["CUDA_VISIBLE_DEVICES"] for spec in services.rollouts] == ["4", "6"]
    with pytest.raises(ConfigurationError, match="set CUDA_VISIBLE_DEVICES= to run on the CPU"):
        evaluation_plan(
            config("--rollout_replicas", "2"), starts_rollouts=True, environment={"CUDA_VISIBLE_DEVICES": "4"}
        )


def test_who_is_told_to_use_the_cpu_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert planning.has_cuda({}) and planning.has_cuda({"CUDA_VISIBLE_DEVICES": "0"})
    for hidden in ({"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"DS_ACCELERATOR": "cpu"}):
        assert not planning.has_cuda(hidden)


def test_children_do_not_resolve_options_a_second_time(tmp_path: Path, monkeypatch) -> None:
    """MMR1_NUM_STEPS would win over the command line in every child's config.yaml."""
    monkeypatch.setenv("MMR1_NUM_STEPS", "5")
    resolved = config("--num_steps", "10")
    assert resolved.num_steps == 10
    environment = child_environment(resolved, {"MMR1_NUM_STEPS": "5", "MMR1_LOG_JSON": "1", "HOME": "/h"})
    assert "MMR1_NUM_STEPS" not in environment
    assert environment["MMR1_LOG_JSON"] == "1" and environment["HOME"] == "/h"
    monkeypatch.delenv("MMR1_NUM_STEPS")
    save_config(resolved, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").num_steps == 10


def test_a_password_travels_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMR1_REDIS_URL", "redis://:secret@elsewhere/0")
    secret = config()
    save_config(secret, tmp_path / "config.yaml")
    assert "secret" not in (tmp_path / "config.yaml").read_text()
    assert child_environment(secret, {})["MMR1_REDIS_URL"] == "redis://:secret@elsewhere/0"


def test_what_enters_no_other_service_inherits_no_secret() -> None:
    """A reward may be somebody's own code."""
    secrets = {"MMR1_ROLLOUT_TOKEN": "t" * 20, "MMR1_REDIS_PASSWORD": "p", "MMR1_REDIS_URL": "redis://:u@h/0"}
    services = plan(config(), {**secrets, "MMR1_REWARD_API_KEY": "k" * 20})
    assert services.redis is not None and services.reward is not None
    for spec in (services.redis, services.reward):
        assert not secrets.keys() & spec.processes[0].environment.keys()
    assert services.reward.processes[0].environment["MMR1_REWARD_API_KEY"] == "k" * 20
    assert "k" * 20 not in services.redis.processes[0].environment.values()
    for spec in (*services.rollouts, services.learner):
        assert spec.processes[0].environment["MMR1_ROLLOUT_TOKEN"] == "t" * 20
    for process in [process for spec in (*services.rollouts, services.learner) for process in spec.processes]:
        assert not any("t" * 20 in word for word in process.command)
