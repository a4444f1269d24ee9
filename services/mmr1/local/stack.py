"""`mmr1 up`: from a configuration to a running stack and an exit code. Knows the order of things; each is elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from rich.console import Console

from mmr1.config import RunConfig, save_config
from mmr1.credentials import TOKEN_VARIABLE, make_token
from mmr1.dataset import with_steps
from mmr1.local.logs import MergedLog
from mmr1.local.plan import CONFIG_NAME, Plan, plan
from mmr1.local.ports import free_port
from mmr1.local.run_lock import run_lock
from mmr1.local.supervisor import supervise
from mmr1.preflight import check
from mmr1.run_identity import check_same_run

TOKEN_NAME = "rollout.token"  # of the stack's own servers, in the run's folder

Companion = Callable[[], Awaitable[None]]


def run_stack(
    config: RunConfig,
    console: Console,
    *,
    quiet: bool = False,
    companion: Companion | None = None,
    clear: Callable[[], None] | None = None,
) -> int:
    """Check everything, start everything, return when it is over.

    Args:
        clear: makes room in the run's folder; called when every check has passed, so a wrong input costs nothing.
        quiet: keep the services' lines in their files; show only what a person must see.
        companion: runs beside the stack and is cancelled with it: the demo's live panel.

    Raises:
        ConfigurationError: something the user must change, found before or after the start.
    """
    if config.redis_port == 0 and config.redis_url is None:
        config = config.model_copy(update={"redis_port": free_port()})
    with run_lock(config.run_dir):
        if config.rollout_token_file == config.run_dir / TOKEN_NAME:  # of the configuration that an earlier start left
            config = config.model_copy(update={"rollout_token_file": None})
        check(config)
        config = with_steps(config)
        if makes_token := config.rollout_token_file is None and TOKEN_VARIABLE not in os.environ:
            config = config.model_copy(update={"rollout_token_file": config.run_dir / TOKEN_NAME})
        if clear is None:  # else what is there goes
            check_same_run(config)
        services = plan(config)
        if clear is not None:
            clear()
        if makes_token:
            make_token(config.run_dir / TOKEN_NAME)
        save_config(config, config.run_dir / CONFIG_NAME)
        (config.run_dir / "redis").mkdir(exist_ok=True)
        with MergedLog(console, config.run_dir / "logs", quiet=quiet) as log:
            code = asyncio.run(_run(config, services, log, companion))
            if code == 0:
                log.say(f"done: {config.run_dir}")
            return code


async def _run(config: RunConfig, services: Plan, log: MergedLog, companion: Companion | None) -> int:
    beside = asyncio.ensure_future(companion()) if companion else None
    try:
        return await supervise(config, services, log)
    finally:
        if beside is not None:
            beside.cancel()
            (error,) = await asyncio.gather(beside, return_exceptions=True)
            if isinstance(error, Exception):  # what only watches must not change how the run ended
                log.warn(f"the live view failed: {type(error).__name__}: {error}")
