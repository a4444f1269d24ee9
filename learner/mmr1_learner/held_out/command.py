"""`mmr1 eval CONFIG [--option value ...]`: what can be wrong is found first, then what does not run yet is started.

The reward server comes first and is shown every row, so a solution that nobody could score costs no engine. torch is
not imported here: the engines are the rollout servers' own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from mmr1.config.eval_options import EvalConfig
from mmr1.config.loading import load_options, option_help, save_config
from mmr1.credentials import TOKEN_VARIABLE, make_token
from mmr1.errors import ConfigurationError
from mmr1.evaluation import Judge, measure
from mmr1.evaluation.tables import print_results
from mmr1.lifecycle import StopRequest, run_command
from mmr1.local.crew import Crew
from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.plan import CONFIG_NAME, EvaluationPlan, evaluation_plan
from mmr1.local.ports import evaluation_ports, require_free
from mmr1.local.run_lock import run_lock
from mmr1.local.service import ServiceFailedError
from mmr1.local.stack import TOKEN_NAME
from mmr1.model_folder import check_folder_for, check_model
from mmr1.preflight import check_held_out, check_reward_server
from mmr1.records import Problem
from mmr1.reward_access import reward_client, reward_tls
from mmr1.rollout_access import RolloutAccess
from mmr1.rollout_client import RolloutClient, ServerStatus
from mmr1.row_checks import sizes_of
from mmr1.run_identity import evaluation_identity
from mmr1.templates import Templates
from mmr1_learner.held_out.asking import AGAIN_SECONDS, AWAY_SECONDS, Asking
from mmr1_learner.held_out.files import RESULTS, TABLE, EvaluationFiles, recorded_identity
from mmr1_learner.held_out.progress import Progress
from mmr1_learner.prompts import PromptFactory, forbidden_tokens
from mmr1_reward_server.client import RewardServerError

USAGE = """\
usage: mmr1 eval CONFIG [--option value ...]

Ask `model` the problems of `eval_file` and measure the answers by the metrics of each row's task. CONFIG may be the
YAML file of a run, and --model RUN_DIR/model what it has trained. Starts a reward server and rollout servers, or uses
running ones (--reward_url, --rollout_servers). The same command goes on where it was ended.

Options, with their defaults; MMR1_<OPTION> sets one too:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 130 or 143 stopped; the same command goes on.

    Raises:
        ConfigurationError: an option, the model, the data or a running server is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        print(option_help(EvalConfig))
        return 0
    if arguments[0].startswith("--"):
        raise ConfigurationError("mmr1 eval needs a configuration file first: mmr1 eval CONFIG [--option value ...]")
    config = load_options(EvalConfig, Path(arguments[0]), arguments[1:])
    if config.eval_file is None:
        raise ConfigurationError("mmr1 eval needs held-out problems; give --eval_file, in the form of train_file")
    console = Console()
    with run_lock(config.folder, "mmr1 eval"):
        problems = check(config)
        return _evaluate(config, problems, console)


def check(config: EvalConfig) -> list[Problem]:
    """Everything that can be known to be wrong before a process starts. Returns the problems to be asked.

    Raises:
        ConfigurationError: at the first that is.
    """
    recorded_identity(config.folder)
    Templates.from_config(config)
    folder = check_model(config.model)
    if folder is not None:
        check_folder_for(config.for_services(), folder)
    RolloutAccess.from_config(config)
    require_free(evaluation_ports(config, starts_rollouts=not config.rollout_servers))
    if config.reward_url is not None:
        check_reward_server(config.reward_url, reward_tls(config))
    return list(check_held_out(config))  # asked in threads, and far fewer than a training set's


def _evaluate(config: EvalConfig, problems: list[Problem], console: Console) -> int:
    serving = config.for_services()
    if not config.rollout_servers and config.rollout_token_file is None and TOKEN_VARIABLE not in os.environ:
        make_token(config.folder / TOKEN_NAME)
        token = {"rollout_token_file": config.folder / TOKEN_NAME}
        config, serving = config.model_copy(update=token), serving.model_copy(update=token)
    save_config(serving, config.folder / CONFIG_NAME)
    services = evaluation_plan(serving, starts_rollouts=not config.rollout_servers)
    with MergedLog(console, config.folder / "logs", quiet=True) as log:
        try:
            return asyncio.run(_supervise(config, problems, services, log))
        except (ServiceFailedError, RewardServerError) as error:
            log.warn(f"error: {error}")
        except grpc.RpcError as error:
            log.warn(f"error: a rollout server answers {error.code().name}: {error.details()}")
        log.warn(f"stopped; the same command goes on. Logs: {config.folder / 'logs'}")
        return 1


async def _supervise(config: EvalConfig, problems: list[Problem], services: EvaluationPlan, log: MergedLog) -> int:
    """Run until it is done or told to stop, and leave no process behind."""
    stop = StopRequest()
    with Guard() as guard:
        crew = Crew(log, guard, config.max_restarts)
        work = asyncio.create_task(_work(config, problems, services, crew, log))
        told = asyncio.create_task(stop.requested.wait())
        try:
            await asyncio.wait([work, told], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.warn("stopping; the same command goes on")
                return stop.exit_code
            work.result()
            return 0
        finally:
            told.cancel()
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work
            await crew.stop(stop.urgent)


async def _work(
    config: EvalConfig, problems: list[Problem], services: EvaluationPlan, crew: Crew, log: MergedLog
) -> None:
    files = EvaluationFiles(config.folder, problems, config.num_samples)
    async with AsyncExitStack() as opened:
        if services.reward:
            await crew.start([services.reward])
        reward = await opened.enter_async_context(reward_client(config, config.reward_deadline_seconds))
        judge = Judge(reward, config.eval_file, problems)
        await judge.check_rows(await asyncio.to_thread(sizes_of, config, problems))
        # Running servers have weights of their own, and so are asked before anything is taken up.
        statuses = await _statuses(config, config.rollout_servers)
        versions = [f"{status.model} {status.version}" for status in statuses]
        files.begin(evaluation_identity(config, problems, versions), log.warn)
        if len(files.answered) < len(problems):
            await crew.start(services.rollouts)
            clients = [_client(config, address) for address in addresses(config)]
            for client in clients:
                opened.callback(client.close)
            tokens = await asyncio.to_thread(_forbidden_tokens, config.model)
            prompts = PromptFactory(config, problems, tokens)
            with Progress(log.console, len(problems), len(files.answered)) as progress:
                asking = Asking(config, problems, prompts, files, progress.show)
                await crew.watch(asking.ask_all(clients, judge))
    _conclude(config, files, log)


def _conclude(config: EvalConfig, files: EvaluationFiles, log: MergedLog) -> None:
    answers = files.answers
    results = measure(answers, seed=config.seed)
    facts = {
        "model": config.model,
        "eval_file": str(config.eval_file),
        "mode": config.eval_mode,
        "temperature": config.evaluation_temperature,
        "seed": config.seed,
        "policy_versions": ", ".join(sorted({answer.version for answer in answers})),
    }
    files.finish(facts, results)
    print_results(results, log.console)
    log.console.print(f"{config.folder / RESULTS}\n{config.folder / TABLE}", soft_wrap=True, highlight=False)


def addresses(config: EvalConfig) -> list[str]:
    """Of the rollout servers that answer: running ones, or those that are started here."""
    own = [f"{config.host}:{config.rollout_port + index}" for index in range(config.rollout_replicas)]
    return config.rollout_servers or own


async def _statuses(config: EvalConfig, servers: Sequence[str]) -> list[ServerStatus]:
    """What running servers hold. One that pauses for a weight update is waited for.

    Raises:
        ConfigurationError: one is out of reach, turns us away, holds no weights that it may sample from, or pauses for
            longer than AWAY_SECONDS.
    """
    found = []
    for address in servers:
        client = _client(config, address)
        try:
            status = await _settled(client)
        except grpc.RpcError as error:
            raise ConfigurationError(
                f"rollout_servers: {address} does not answer ({error.code().name.lower()}); start it, or leave "
                "rollout_servers out: `mmr1 eval` starts its own"
            ) from None
        finally:
            client.close()
        if status.state != "serves":
            why = f": {status.detail}" if status.detail else ""
            raise ConfigurationError(
                f"rollout_servers: {address} is in state {status.state}{why}; it serves when a learner has given it "
                "weights, or when it is started with --serve-base-weights"
            )
        found.append(status)
    return found


async def _settled(client: RolloutClient) -> ServerStatus:
    """The server's status, when no weight update is under way or has been for too long."""
    end = time.monotonic() + AWAY_SECONDS
    while True:
        status = await asyncio.to_thread(client.status)
        if status.state not in ("paused", "updating") or time.monotonic() > end:
            return status
        await asyncio.sleep(AGAIN_SECONDS)


def _client(config: EvalConfig, address: str) -> RolloutClient:
    return RolloutClient(address, config.run, 0, RolloutAccess.from_config(config))


def _forbidden_tokens(model: str) -> tuple[int, ...]:
    from transformers import AutoConfig

    loaded: Any = AutoConfig.from_pretrained(model)
    return forbidden_tokens(loaded)


if __name__ == "__main__":
    sys.exit(run_command(main))
