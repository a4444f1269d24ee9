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
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError, StaleWriterError
from mmr1.lifecycle import run_command
from mmr1.reward_names import check_reward_names
from mmr1.telemetry import configure_logging
from mmr1_learner.errors import StopRequestedError

if TYPE_CHECKING:  # they import torch
    from mmr1_learner.checkpoint import Checkpoints
    from mmr1_learner.leader import Leader
    from mmr1_learner.ranks import Ranks
    from mmr1_learner.trainer import Trainer

log = structlog.get_logger()


def train(config: RunConfig) -> None:
    """Run to `num_steps`, going on from the newest durable checkpoint when there is one."""
    from mmr1_learner.checkpoint import Checkpoints
    from mmr1_learner.leader import Leader
    from mmr1_learner.model import PromptEncoder, load_policy
    from mmr1_learner.ranks import join_ranks
    from mmr1_learner.trainer import Trainer

    ranks = join_ranks()
    policy = load_policy(config.model, config).to(ranks.device)
    encoder = PromptEncoder(config.model, policy, config)
    trainer = Trainer(config, ranks, policy, encoder, policy.frozen_copy() if config.kl else None)
    checkpoints = Checkpoints(config.run_dir / "checkpoints", config.keep_last)
    found = checkpoints.newest()
    if found:
        loaded, _ = trainer.engine.load_checkpoint(str(found[0]), tag="engine")
        if loaded is None:
            raise RuntimeError(f"DeepSpeed loaded nothing from {found[0]}: going on would train the base weights")
    leader = Leader(config, ranks, trainer.policy, encoder, checkpoints) if ranks.is_first else None
    try:
        if leader:
            leader.prepare(found[1] if found else None)
        else:
            # Rank 0 says when to stop; a rank that went by itself would leave the others in a collective.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        if not _take_steps(config, ranks, trainer, leader, checkpoints, found[1].step if found else None):
            return
        if leader:
            leader.finish()
            trainer.policy.hf.save_pretrained(config.run_dir / "model")
            encoder.processor.save_pretrained(config.run_dir / "model")
        ranks.barrier()
    finally:
        if leader:
            leader.close()


def _take_steps(
    config: RunConfig,
    ranks: Ranks,
    trainer: Trainer,
    leader: Leader | None,
    checkpoints: Checkpoints,
    durable: int | None,
) -> bool:
    """From the step of the newest checkpoint to the run's last, or until told to stop: then False."""
    from mmr1_learner.plan import StepPlan

    def save(step: int) -> None:
        if leader:
            checkpoints.start(step)
        ranks.barrier()
        trainer.engine.save_checkpoint(str(checkpoints.aside(step)), tag="engine")
        ranks.barrier()
        if leader:
            leader.commit_checkpoint(leader.state_at(step))

    step = durable or 0
    while step < config.num_steps:
        plan = StepPlan.decode(ranks.share(leader.next_plan(step).encode() if leader else None))
        if plan.stop:
            if step != durable:
                save(step)
            log.info("stopped as told", step=step)
            return False
        started = time.monotonic()
        report = trainer.step(plan)
        step += 1
        if leader:
            leader.after_step(plan, report, trainer.phases, time.monotonic() - started)
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            save(step)
            durable = step
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mmr1-learner", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a run's YAML file")
    arguments, options = parser.parse_known_args(argv)
    config = load_config(arguments.config, options)
    set_environment(config)
    rank = os.environ.get("RANK", "0")
    configure_logging(f"learner-{rank}")
    if rank == "0":
        check_reward_names(config)
    try:
        train(config)
    except StaleWriterError as error:
        # Restarting would take the run back from the learner that has taken it over.
        raise ConfigurationError(f"another learner has taken over run {config.run!r}: {error}") from None
    except StopRequestedError:
        log.info("stopped while waiting; the newest checkpoint is where the run goes on")
        return 128 + signal.SIGTERM
    return 0


def set_environment(config: RunConfig) -> None:
    """Before torch is imported: one process on a small machine must not take every core."""
    os.environ.setdefault("OMP_NUM_THREADS", str(config.learner_threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if Path(config.model).is_dir() else "0")
    if not Path("/dev/nvidia0").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


if __name__ == "__main__":
    sys.exit(run_command(main))
