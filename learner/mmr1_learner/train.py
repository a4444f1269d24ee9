"""The learner: `python -m mmr1_learner.train --config RUN.yaml` on every rank.

The loop fits one screen: collect groups, take an optimizer step, send the new version, sometimes make it durable.
What each of these means stands in the files it calls.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from mmr1.config import RunConfig, load_config, save_config
from mmr1.dataset import eval_problems, with_steps
from mmr1.errors import ConfigurationError, StaleWriterError, WeightUpdateError
from mmr1.lifecycle import run_command
from mmr1.local.plan import CONFIG_NAME, has_cuda
from mmr1.preflight import check_data, check_kimikl_task, check_training
from mmr1.redis_access import RedisAccess
from mmr1.reward_names import check_reward_names
from mmr1.rollout_access import RolloutAccess
from mmr1.row_checks import check_rows_of_server
from mmr1.run_identity import check_same_run
from mmr1.telemetry import configure_logging, works_for
from mmr1.tracing import start_tracing, stop_tracing
from mmr1.wire import SchemaVersionError
from mmr1_learner.errors import NonFiniteLossError, StopRequestedError

if TYPE_CHECKING:  # they import torch
    from mmr1_learner.checkpoint import Checkpoints
    from mmr1_learner.leader import Leader
    from mmr1_learner.published import Published
    from mmr1_learner.trainer import Trainer

log = structlog.get_logger()

TOLD_TO_STOP = 128 + signal.SIGTERM  # whichever signal it was: the run is not done, and the same command goes on
_GO_ON = b""  # rank 0 needs the others no more, for now


def train(config: RunConfig) -> bool:
    """Run to `num_steps`, going on from the newest durable checkpoint when there is one. False: told to stop before."""
    from mmr1_learner.checkpoint import Checkpoints
    from mmr1_learner.export import export
    from mmr1_learner.leader import Leader
    from mmr1_learner.model import PromptEncoder, policy_of
    from mmr1_learner.published_adapters import publish
    from mmr1_learner.ranks import join_ranks, leave_ranks
    from mmr1_learner.reference import reference_of
    from mmr1_learner.trainer import Trainer

    ranks = join_ranks()
    policy = policy_of(config, ranks)
    encoder = PromptEncoder(config.model, policy, config)
    trainer = Trainer(config, ranks, policy, encoder, reference_of(config, policy))
    checkpoints = Checkpoints(config.run_dir / "checkpoints", config.keep_last)
    found = checkpoints.newest() if ranks.is_first else None
    start = int(ranks.share(str(found[1].step if found else -1).encode() if ranks.is_first else None))
    if start >= 0:
        # Rank 0 alone reads: a run's folder need not be seen by other machines.
        trainer.state.load((found[0] if found else checkpoints.path(start)) / "engine")
    published = publish(config, trainer.policy, ranks)
    published.refresh()
    leader = Leader(config, ranks, published, encoder, checkpoints) if ranks.is_first else None
    if leader:
        trainer.before_forwards = leader.updates.before_forwards
    exit_code = 1
    try:
        if leader:
            leader.prepare(found[1] if found else None)
        else:
            # Rank 0 says when to stop; a rank that went by itself would leave the others in a collective.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        published.tell(_GO_ON if leader else None)
        finished = _take_steps(config, published, trainer, leader, checkpoints, start if start >= 0 else None)
        if finished:
            if leader:
                leader.finish()
            published.tell(_GO_ON if leader else None)
            export(config, published, encoder.processor, config.run_dir)
            ranks.barrier()
            if leader:
                leader.files.status("done")
        exit_code = 0
    finally:
        if leader:
            leader.close(exit_code)
    leave_ranks()
    return finished


def _look_ahead(trainer: Trainer, published: Published, leader: Leader | None, next_step: Callable[[], int]) -> None:
    """Have each step begin with the images of the next, on all ranks, as soon as its groups are known.

    They are asked for when the GPU has all its work, and if they are not there then, once more before the optimizer.
    """
    from mmr1_learner.plan import StepPlan

    def asked() -> bool:
        if word := published.tell(leader.plan_ahead(next_step()) if leader else None):
            trainer.expect(StepPlan.decode(word))
        return bool(word)

    known = False

    def while_computing(is_last: bool) -> None:
        nonlocal known
        known = is_last and asked()

    def before_moving(is_last: bool) -> None:
        if leader:
            leader.updates.end(published.keep_alive if is_last else None)  # the others listen then
        if is_last and known:
            published.tell(_GO_ON if leader else None)
        elif is_last:
            asked()

    trainer.while_computing, trainer.before_moving = while_computing, before_moving


def _take_steps(
    config: RunConfig,
    published: Published,
    trainer: Trainer,
    leader: Leader | None,
    checkpoints: Checkpoints,
    durable: int | None,
) -> bool:
    """From the step of the newest checkpoint to the run's last, or until told to stop: then False."""
    from safetensors import SafetensorError

    from mmr1_learner.plan import StepPlan

    def save(step: int) -> None:
        aside = checkpoints.start(step, leader.queue.ensure_current) if leader else None
        try:
            trainer.state.save(aside / "engine" if aside else None)
            if leader:
                leader.commit_checkpoint(leader.state_at(step))
        except (OSError, SafetensorError):
            if leader:
                leader.queue.ensure_current()  # a newer learner takes away what it writes: then this is why
            raise

    _look_ahead(trainer, published, leader, lambda: step + 1)
    step = durable or 0
    while step < config.num_steps:
        plan = StepPlan.decode(published.tell(leader.next_plan(step).encode() if leader else None))
        if plan.stop:
            if step != durable:
                save(step)
            trainer.expect(None)
            log.info("stopped as told", step=step)
            return False
        started = time.monotonic()
        report = trainer.step(plan)
        if report:  # else the parameters are as they were, and may be on their way
            published.refresh()
        step += 1
        if leader:
            leader.after_step(plan, report, trainer.phases, time.monotonic() - started, trainer.gaps)
        published.tell(_GO_ON if leader else None)
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            save(step)
            durable = step
    return True


def main(argv: list[str] | None = None) -> int:
    """One rank. Returns 0 when the run is done, `TOLD_TO_STOP` when it was told to stop before."""
    parser = argparse.ArgumentParser(prog="mmr1-learner", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a run's YAML file")
    parser.add_argument("--report", action="store_true", help="at the end, do as `mmr1 report` does")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher says it twice
    arguments, options = parser.parse_known_args(argv)
    config = with_steps(load_config(arguments.config, [*options, "--learner_processes", number_of_ranks()]))
    set_environment(config)
    rank = os.environ.get("RANK", "0")
    configure_logging(f"learner-{rank}")
    works_for(config.run)
    if rank == "0":  # the others wait for it to join them, and their launcher ends them when it does not
        check(config)
        _keep(config, arguments.config)
        start_tracing("mmr1-learner", f"learner-{rank}")
    try:
        finished = train(config)
    except StaleWriterError as error:
        # Restarting would take the run back from the learner that has taken it over.
        raise ConfigurationError(f"another learner has taken over run {config.run!r}: {error}") from None
    except SchemaVersionError as error:
        raise ConfigurationError(str(error)) from None
    except RedisError as error:
        if refusal := RedisAccess.from_config(config).refusal(error):
            raise refusal from None
        raise
    except NonFiniteLossError as error:
        # The same groups are handed out again, and would end the next life at the same place.
        raise ConfigurationError(
            f"{error}; the run stops, and nothing of this step is kept: change what made it (a lower learning_rate, "
            "another dtype), and the same command goes on from the newest checkpoint"
        ) from None
    except (RuntimeError, WeightUpdateError) as error:
        from mmr1_learner.gpu_memory import out_of_memory

        # Started again, it would run out at the same place. Of several ranks the one says so that it has happened to.
        if ended := out_of_memory(error, config):
            raise ended from None
        raise
    except StopRequestedError:
        log.info("stopped while waiting; the newest checkpoint is where the run goes on")
        return TOLD_TO_STOP
    finally:
        stop_tracing()
    if not finished:
        return TOLD_TO_STOP
    if arguments.report and rank == "0":
        from mmr1.report import build  # it draws: nothing that a learner need carry through the run

        build(config.run_dir)
        log.info("reported", file=str(config.run_dir / "report.html"))
    return 0


def check(config: RunConfig) -> None:
    """What `mmr1 up` has found right before it started anything, for a learner that is started by hand.

    Raises:
        ConfigurationError: at the first thing that is wrong; no weights have been read.
    """
    check_training(config)
    RolloutAccess.from_config(config)
    RedisAccess.from_config(config)
    problems = check_data(config)
    held_out = eval_problems(config, check_images=False)
    check_reward_names(config, problems.tasks, held_out.tasks)
    check_kimikl_task(config, problems)
    check_same_run(config)
    check_rows_of_server(config, problems, held_out)


def _keep(config: RunConfig, given: Path) -> None:
    """The run's folder says what the run is, as `mmr1 up` has it say: `mmr1 report` and the next start read it."""
    kept = config.run_dir / CONFIG_NAME
    if given.resolve() == kept.resolve():
        return
    try:
        save_config(config, kept)
    except OSError as error:
        raise ConfigurationError(f"{kept} cannot be written: {error.strerror}; set run_dir") from None


def number_of_ranks() -> str:
    """A launcher may start other ranks than `learner_processes` says, here or on several machines; without one it is 1.

    Known before the options are looked at, because the batch must divide over the ranks that are really there.

    Raises:
        ConfigurationError: WORLD_SIZE is no number.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdigit() or given == "0":
        raise ConfigurationError(f"WORLD_SIZE is {given!r}; torchrun sets it to the number of ranks")
    return given


def set_environment(config: RunConfig) -> None:
    """Before torch is imported: one process on a small machine must not take every core."""
    os.environ.setdefault("OMP_NUM_THREADS", str(config.learner_threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if Path(config.model).is_dir() else "0")
    if not has_cuda(os.environ):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


if __name__ == "__main__":
    sys.exit(run_command(main))
