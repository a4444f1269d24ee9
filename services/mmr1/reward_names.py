"""Does the reward server know the run's rewards? Asked before a model loads; later, nothing would be scored.

`mmr1 up` asks the program that it is about to start, the learner the server that runs.
"""

from __future__ import annotations

import asyncio
import difflib
import subprocess
import sys
from collections.abc import Collection

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.reward_access import KEY_REMEDY, reward_client
from mmr1_reward_server.client import KeyRefused

_ANSWER_SECONDS = 30.0
_LIST_SECONDS = 120.0  # two on an idle machine


def check_reward_names(config: RunConfig) -> None:
    """Hold `rewards` and the evaluation's task against GET /v1/tasks.

    Raises:
        ConfigurationError: the server has no such task; the nearest is named. Or it does not take our key.
        RewardServerError: it does not answer. A restart may mend it.
    """
    _require(config, asyncio.run(_offered(config)))


def check_names_of_own_server(config: RunConfig) -> None:
    """The same against the reward server of this environment, which need not run.

    Raises:
        ConfigurationError: as `check_reward_names`, or the reward server does not start.
    """
    command = [sys.executable, "-m", "mmr1_reward_server", "--list-tasks"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"the reward server does not list its tasks within {_LIST_SECONDS:.0f} s; run {' '.join(command)}"
        ) from None
    if listed.returncode != 0:
        lines = listed.stderr.strip().splitlines() or [f"exit code {listed.returncode}"]
        raise ConfigurationError(f"the reward server does not start: {lines[-1]}; `make setup` installs it")
    _require(config, listed.stdout.split())


def _require(config: RunConfig, offered: Collection[str]) -> None:
    named = {"rewards": [spec.task for spec in config.reward_specs]}
    if config.eval_file is not None:
        named["task"] = [config.task]
    for option, names in named.items():
        for name in names:
            if name not in offered:
                near = difflib.get_close_matches(name, offered, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(offered))}"
                raise ConfigurationError(f"option {option!r}: the reward server has no task {name!r}{hint}")


async def _offered(config: RunConfig) -> set[str]:
    async with reward_client(config, _ANSWER_SECONDS) as client:
        try:
            return {task.name for task in await client.tasks()}
        except KeyRefused as error:
            raise ConfigurationError(f"{error}; {KEY_REMEDY}") from None
