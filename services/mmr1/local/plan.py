"""From a RunConfig to the services of a run: their commands, environments, readiness and deadlines.

This is the one place that knows how each program is called. It starts nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmr1.config import RunConfig
from mmr1.credentials import REWARD_KEY_VARIABLE, SECRET_VARIABLES
from mmr1.local.gpus import VISIBLE, place, visible_gpus
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES, grpc_serving, http_ready, redis_answers
from mmr1.local.redis_server import find_redis_server, redis_command
from mmr1.local.service import ProcessSpec, ServiceSpec
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import LOAD_SECONDS, STOP_SECONDS

CONFIG_NAME = "config.yaml"


@dataclass(frozen=True, slots=True)
class Plan:
    """In start order. `redis` and `reward` are None where the run uses existing ones."""

    redis: ServiceSpec | None
    reward: ServiceSpec | None
    rollouts: tuple[ServiceSpec, ...]
    learner: ServiceSpec


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """In start order. `reward` is None and `rollouts` empty where running ones are used."""

    reward: ServiceSpec | None
    rollouts: tuple[ServiceSpec, ...]


def plan(config: RunConfig, environment: Mapping[str, str] | None = None) -> Plan:
    """The services of `config`, whose resolved form lies in its run folder.

    Raises:
        ConfigurationError: Redis is to be started and there is no redis-server, or there are too few GPUs.
    """
    inherited = child_environment(config, os.environ if environment is None else environment)
    gpus = place(config, _gpus(inherited))
    learner, *rollouts = (
        [{**inherited, VISIBLE: visible} for visible in (gpus.learner, *gpus.rollouts)]
        if gpus
        else [inherited] * (1 + config.rollout_replicas)
    )
    # Only health is asked for here, which needs no token: the stack's own is not written yet.
    access = RolloutAccess.from_config(config.model_copy(update={"rollout_token_file": None}), {})
    return Plan(
        redis=_redis(config, inherited) if config.redis_url is None else None,
        reward=_reward(config, inherited) if config.reward_url is None else None,
        rollouts=tuple(_rollout(config, index, own, access) for index, own in enumerate(rollouts)),
        learner=_learner(config, learner),
    )


def evaluation_plan(
    config: RunConfig, *, starts_rollouts: bool, environment: Mapping[str, str] | None = None
) -> EvaluationPlan:
    """What `mmr1 eval` starts: no Redis, no learner, and rollout servers that serve their model's own weights."""
    inherited = child_environment(config, os.environ if environment is None else environment)
    access = RolloutAccess.from_config(config.model_copy(update={"rollout_token_file": None}), {})
    gpus = place(config, _gpus(inherited), num_ranks=0) if starts_rollouts else None
    own = (
        [{**inherited, VISIBLE: visible} for visible in gpus.rollouts]
        if gpus
        else [inherited] * config.rollout_replicas
    )
    return EvaluationPlan(
        reward=_reward(config, inherited) if config.reward_url is None else None,
        rollouts=tuple(
            _rollout(config, index, environment, access, serves_base=True)
            for index, environment in enumerate(own if starts_rollouts else ())
        ),
    )


def child_environment(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """What every service inherits.

    MMR1_<OPTION> variables are left out: they are resolved into the run's config.yaml already and would win over the
    command line there. The Redis URL alone travels this way, because a password does not belong in a file. PATH gets
    this environment's programs (ninja, for DeepSpeed), whether or not somebody has activated it.
    """
    options = {f"MMR1_{name}".upper() for name in RunConfig.model_fields}
    result = {name: value for name, value in environment.items() if name.upper() not in options}
    if config.redis_url is not None:
        result["MMR1_REDIS_URL"] = config.redis_url
    result["PYTHONUNBUFFERED"] = "1"
    result["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), result.get("PATH", os.defpath)])
    return result


def has_cuda(environment: Mapping[str, str]) -> bool:
    """Whether this machine shows a CUDA device to our children, and they may use it. Asks the kernel, not torch."""
    hidden = environment.get(VISIBLE) in ("", "-1") or environment.get("DS_ACCELERATOR") == "cpu"
    return not hidden and Path("/dev/nvidiactl").exists()


def _gpus(environment: Mapping[str, str]) -> list[str]:
    return visible_gpus(environment) if has_cuda(environment) else []


def _redis(config: RunConfig, inherited: Mapping[str, str]) -> ServiceSpec:
    folder = (config.run_dir / "redis").resolve()
    command = redis_command(find_redis_server(), config.redis_port, folder)
    return ServiceSpec(
        name="redis",
        processes=(ProcessSpec("redis", command, _without_secrets(inherited, REWARD_KEY_VARIABLE)),),
        ready=redis_answers(config.resolved_redis_url),
    )


def _reward(config: RunConfig, inherited: Mapping[str, str]) -> ServiceSpec:
    command = _python("mmr1_reward_server", "--host", config.host, "--port", config.reward_port)
    return ServiceSpec(
        name="reward",
        processes=(ProcessSpec("reward", command, {**_without_secrets(inherited), "OMP_NUM_THREADS": "1"}),),
        ready=http_ready(f"{config.resolved_reward_url}/readyz"),
    )


def _rollout(
    config: RunConfig, index: int, inherited: Mapping[str, str], access: RolloutAccess, *, serves_base: bool = False
) -> ServiceSpec:
    name, port = f"rollout-{index}", config.rollout_port + index
    command = _python(
        "mmr1_rollout_server",
        *("--config", config.run_dir / CONFIG_NAME),
        *("--server-id", name),
        *("--port", port),
        *("--metrics-port", config.learner_metrics_port + 1 + index),
        *(["--serve-base-weights"] if serves_base else []),
    )
    environment = {**inherited, "OMP_NUM_THREADS": str(config.rollout_threads)}
    return ServiceSpec(
        name=name,
        processes=(ProcessSpec(name, command, environment),),
        ready=grpc_serving(f"{config.host}:{port}", SERVES if serves_base else ACCEPTS_WEIGHTS, access),
        ready_deadline_seconds=LOAD_SECONDS,
        stop_deadline_seconds=STOP_SECONDS,
    )


def _learner(config: RunConfig, inherited: Mapping[str, str]) -> ServiceSpec:
    command = _python("mmr1_learner.train", "--config", config.run_dir / CONFIG_NAME)
    size = config.learner_processes
    shared = {
        **inherited,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(config.learner_master_port),
        "OMP_NUM_THREADS": str(config.learner_threads),
    }
    if not has_cuda(inherited):
        shared["DS_ACCELERATOR"] = "cpu"
    ranks = (
        ProcessSpec(
            "learner" if size == 1 else f"learner-{rank}",
            command,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    )
    return ServiceSpec(name="learner", processes=tuple(ranks), stop_deadline_seconds=30.0, finishes=True)


def _without_secrets(environment: Mapping[str, str], *others: str) -> dict[str, str]:
    """For programs that enter no other service: a reward of somebody's own could read them."""
    return {name: value for name, value in environment.items() if name not in {*SECRET_VARIABLES, *others}}


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]
