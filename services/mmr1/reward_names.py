"""Does the reward server know the run's rewards? Asked before a model loads; later, nothing would be scored.

`mmr1 up` asks the program that it is about to start, the learner the server that runs.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from mmr1.config import RunConfig
from mmr1.config.objective import OWN_TASK
from mmr1.errors import ConfigurationError
from mmr1.reward_access import KEY_REMEDY, reward_client
from mmr1.reward_program import ask
from mmr1_reward_server.client import KeyRefused

_ANSWER_SECONDS = 30.0

Names = Collection[str]


def check_reward_names(config: RunConfig, trained: Names | None = None, held_out: Names | None = None) -> None:
    """Hold rewards, their params and the data's tasks against GET /v1/tasks.

    Args:
        trained: tasks of the training data, which `task` among the rewards stands for; default: the run's own.
        held_out: tasks of the evaluation's data; default: the run's own if it has such data.

    Raises:
        ConfigurationError: the server has no such task or param; the nearest is named. Or it does not take our key.
        RewardServerError: it does not answer. A restart may mend it.
    """
    offered = asyncio.run(_offered(config))
    _require(config, offered, trained, held_out)
    _require_params(config, offered)


def check_names_of_own_server(config: RunConfig, trained: Names | None = None, held_out: Names | None = None) -> None:
    """The same against the reward server of this environment, which need not run; it does not say its params.

    Raises:
        ConfigurationError: as `check_reward_names`, or the reward server does not start.
    """
    _require(config, ask(["--list-tasks"]).split(), trained, held_out)


def _require(config: RunConfig, offered: Names, trained: Names | None, held_out: Names | None) -> None:
    trained = {config.task} if trained is None else trained
    held_out = {config.task} if held_out is None and config.eval_file is not None else held_out
    rewards = [spec.task for spec in config.reward_specs]
    named = {"option 'rewards'": [name for name in rewards if name != OWN_TASK]}
    own = sorted(trained) if OWN_TASK in rewards else []
    named[f"train_file {config.train_file}"] = [task for task in own if task != config.task]
    named[f"eval_file {config.eval_file}"] = [task for task in sorted(held_out or ()) if task != config.task]
    named["option 'task'"] = [config.task] if config.task in {*own, *(held_out or ())} else []
    for where, names in named.items():
        for name in names:
            if name not in offered:
                raise ConfigurationError(f"{where}: the reward server has no task {name!r}; {_nearest(name, offered)}")
    for name in config.reward_params:
        used = {*rewards, *own} - {OWN_TASK}
        if name not in used:
            hint = _nearest(name, used)
            raise ConfigurationError(f"option 'reward_params': {name!r} is not among the rewards; {hint}")


def _require_params(config: RunConfig, offered: Mapping[str, Mapping[str, Any]]) -> None:
    for name, params in config.reward_params.items():
        there = offered[name].get("properties", {})
        for param in params:
            if param not in there and offered[name].get("additionalProperties") is False:
                raise ConfigurationError(
                    f"option 'reward_params': {name} has no param {param!r}; {_nearest(param, there)}"
                )


def _nearest(name: str, there: Names) -> str:
    near = difflib.get_close_matches(name, there, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(there))}"


async def _offered(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The schema of the params of each task."""
    async with reward_client(config, _ANSWER_SECONDS) as client:
        try:
            return {task.name: task.params_schema for task in await client.tasks()}
        except KeyRefused as error:
            raise ConfigurationError(f"{error}; {KEY_REMEDY}") from None
