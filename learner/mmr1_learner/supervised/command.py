"""`mmr1 sft CONFIG [--option value ...]`: what can be wrong is found first, then one process or several ranks train.

Under torchrun or the deepspeed launcher, which set RANK, this process is that rank and starts no others. torch is
imported only when everything has been checked.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmr1.config.loading import load_options, option_help, save_config
from mmr1.config.sft_options import SftConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, UnreachableImageError
from mmr1.lifecycle import StopRequest, run_command
from mmr1.local.guard import Guard
from mmr1.local.plan import child_environment, has_cuda
from mmr1.local.process import ChildProcess
from mmr1.local.run_lock import run_lock
from mmr1.preflight import check_data, check_space, check_training
from mmr1.run_identity import check_same_run
from mmr1.telemetry import configure_logging
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.train import number_of_ranks, set_environment

USAGE = """\
usage: mmr1 sft CONFIG [--option value ...]

Supervised fine-tuning on the solutions of `train_file`, as `answer_template` words them. CONFIG may be the YAML file of
a run: what only reinforcement needs has no effect here. Everything goes to RUN_DIR/sft, the model to RUN_DIR/sft/model.

Options, with their defaults; MMR1_<OPTION> sets one too:
"""
STOP_SECONDS = 600.0  # for the step under way and a checkpoint; a second signal ends it at once


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 something the user must change, 130 or 143 stopped with a checkpoint.

    Raises:
        ConfigurationError: an option, the model or the data is wrong.
    """
    given = sys.argv[1:] if argv is None else argv
    # The deepspeed launcher says LOCAL_RANK a second time, as an argument.
    arguments = [argument for argument in given if not argument.startswith("--local_rank=")]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        print(option_help(SftConfig))
        return 0
    if arguments[0].startswith("--"):
        raise ConfigurationError("mmr1 sft needs a configuration file first: mmr1 sft CONFIG [--option value ...]")
    started = "RANK" in os.environ  # by a launcher, as one of the ranks that it counts
    ranks = ["--learner_processes", number_of_ranks()] if started else []
    config = load_options(SftConfig, Path(arguments[0]), [*arguments[1:], *ranks])
    saved = config.folder / "config.yaml"
    if started:
        if os.environ["RANK"] == "0":
            check(config)
            if Path(arguments[0]) != saved:  # else `mmr1 sft` has written it, and other ranks may be reading it
                save_config(config, saved)
        return _train(config)
    with run_lock(config.folder, "mmr1 sft"):
        check(config)
        save_config(config, saved)
        if config.learner_processes == 1:
            return _train(config)
        return asyncio.run(_run_ranks(config))


def check(config: SftConfig) -> None:
    """Everything that can be known to be wrong before an engine is loaded.

    Raises:
        ConfigurationError: at the first that is.
    """
    config.for_problems(1, 1)  # are there steps at all?
    config.folder.mkdir(parents=True, exist_ok=True)
    check_space(config, check_training(config))
    check_data(config)
    check_same_run(config)


def _train(config: SftConfig) -> int:
    set_environment(config)
    os.environ.setdefault("MASTER_PORT", "0")  # of a rank alone: any free one
    configure_logging(f"sft-{os.environ.get('RANK', '0')}")
    from mmr1_learner.supervised.loop import fine_tune

    try:
        return fine_tune(config)
    except NonFiniteLossError as error:
        raise ConfigurationError(
            f"{error}; change what made it (a lower learning_rate, another dtype), and the same command goes on from "
            "the newest checkpoint"
        ) from None
    except UnreachableImageError:
        raise
    except ImageError as error:
        raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None
    except RuntimeError as error:
        from mmr1_learner.gpu_memory import out_of_memory

        if ended := out_of_memory(error, config):
            raise ended from None
        raise


async def _run_ranks(config: SftConfig) -> int:
    """One process for each rank. When one fails the others are ended: they would wait for it in a collective."""
    console = Console()
    stop = StopRequest()
    shared = {
        **child_environment(config, os.environ),
        "WORLD_SIZE": str(config.learner_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(config.learner_master_port),
        "OMP_NUM_THREADS": str(config.learner_threads),
    }
    if not has_cuda(shared):
        shared["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "mmr1_learner.supervised.command", str(config.folder / "config.yaml")]
    console.print(f"{config.learner_processes} ranks: {shlex.join(command)}", style="dim", soft_wrap=True)

    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with Guard() as guard:
        ranks = [
            ChildProcess.start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, guard, show)
            for rank in range(config.learner_processes)
        ]
        ends = [asyncio.create_task(rank.wait()) for rank in ranks]
        told = asyncio.create_task(stop.requested.wait())
        try:
            await asyncio.wait([told, *ends], return_when=asyncio.FIRST_COMPLETED)
            if stop.requested.is_set():
                await _stop(ranks, stop)
            for end in asyncio.as_completed(ends):
                if code := await end:
                    return stop.exit_code or (code if code > 0 else 128 - code)
            return stop.exit_code
        finally:
            told.cancel()
            for rank in ranks:
                rank.kill()
            await asyncio.gather(*ends)


async def _stop(ranks: list[ChildProcess], stop: StopRequest) -> None:
    """Rank 0 tells the others after its step; all of them end at the deadline, or when told a second time."""
    stopping = asyncio.create_task(ranks[0].stop(STOP_SECONDS))
    urgent = asyncio.create_task(stop.urgent.wait())
    await asyncio.wait([stopping, urgent], return_when=asyncio.FIRST_COMPLETED)
    urgent.cancel()
    if stop.urgent.is_set():
        for rank in ranks:
            rank.kill()
    await stopping


if __name__ == "__main__":
    sys.exit(run_command(main))
