"""The run of `mmr1 sft`: steps, held-out loss, checkpoints, resume, and the model's folder at the end.

What is written is written by rank 0. What a step computes stands in tuner.py.
"""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import structlog

from mmr1.config.sft_options import SftConfig
from mmr1.dataset import eval_problems, num_to_train, train_problems
from mmr1.run_identity import identity_of, options_of, say_changed_options
from mmr1_learner.checkpoint import Checkpoints, RunState
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.export import export
from mmr1_learner.metrics import RunFiles
from mmr1_learner.model import PromptEncoder, policy_of
from mmr1_learner.prompt_lengths import check_prompt_lengths
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks, join_ranks
from mmr1_learner.schedules import say_other_length
from mmr1_learner.supervised.dump import FoundStep, write_dump
from mmr1_learner.supervised.examples import Examples
from mmr1_learner.supervised.tuner import Tuner
from mmr1_learner.trackers import Trackers

log = structlog.get_logger()


def fine_tune(config: SftConfig) -> int:
    """Run to the last step, going on from the newest checkpoint. Returns 0, or the signal that stopped it + 128."""
    run = _Run(config, join_ranks())
    exit_code = 1
    try:
        code = run.to_the_end()
        exit_code = 0  # one that was told to stop has not failed
        return code
    finally:
        run.close(exit_code)


class _Run:
    def __init__(self, config: SftConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self._stopped_by = _listen(ranks)
        policy = policy_of(config, ranks)
        self._encoder = PromptEncoder(config.model, policy, config)
        problems = train_problems(config, check_images=False)  # the command has looked at them
        self._config = config = config.for_problems(num_to_train(problems, config), ranks.world_size)
        held_out = eval_problems(config, check_images=False)
        self._identity = identity_of(config, problems) if ranks.is_first else {}
        examples = Examples(config, self._encoder, problems)
        self._held_out = Examples(config, self._encoder, held_out) if held_out else None
        if ranks.is_first:
            for some in (problems, held_out):
                check_prompt_lengths(config, self._encoder, examples.prompts, some)
        self.tuner = Tuner(config, ranks, policy, examples)
        self._files = RunFiles(config.folder)
        self._checkpoints = Checkpoints(config.folder / "checkpoints", config.keep_last)
        self._state = RunState(0, 0, 0)
        self._began = time.monotonic()
        self._trackers = Trackers(config, self._files, config.folder) if ranks.is_first else None

    def close(self, exit_code: int) -> None:
        """The trackers hear whether the run has failed."""
        self.tuner.close()
        if self._trackers:
            self._trackers.close(exit_code)

    def to_the_end(self) -> int:
        resumed = self._resume()
        if self._ranks.is_first:
            self._files.rewind(self._state.step if resumed else -1)
        if not resumed and self._config.eval_at_start:
            self._evaluate("before", 0)
        self._began = time.monotonic()
        code = self._take_steps()
        if code:
            self._status("stopped", f"after step {self._state.step}; the same command goes on")
            return code
        if self._config.eval_at_end and not self._is_evaluated("after", self._config.num_steps):
            self._evaluate("after", self._config.num_steps)
        published = Published(self.tuner.policy, self._ranks, self._config.weight_bucket_bytes)
        published.refresh()
        export(self._config, published, self._encoder.processor, self._config.folder)
        if self._ranks.is_first:
            self._status("done")
            log.info("the model is ready", folder=str(self._config.folder / "model"))
        self._ranks.barrier()
        return 0

    def _take_steps(self) -> int:
        config, per_step = self._config, self.tuner.sequences_per_step
        step, position = self._state.step, self._state.next_position
        durable = step
        while step < config.num_steps:
            if code := self._told_to_stop():
                if step != durable:
                    self._save(step, position)
                return code
            self._status("training", f"step {step + 1} of {config.num_steps}")
            started = time.monotonic()
            try:
                report = self.tuner.step(step, position)
            except NonFiniteLossError as error:
                raise NonFiniteLossError(self._dumped(str(error), step, position)) from None
            step, position = step + 1, position + per_step
            self._record(step, report, time.monotonic() - started)
            if config.eval_every and step % config.eval_every == 0 and step < config.num_steps:
                self._evaluate("step", step)
            if step % config.checkpoint_every == 0 or step == config.num_steps:
                self._save(step, position)
                durable = step
        return 0

    def _dumped(self, message: str, step: int, position: int) -> str:
        """Write down what was found here. Nobody leaves before all have: the first to end ends the others."""
        ranks = self._ranks
        if self.tuner.at_fault:
            reason = message.partition(": ")[2]
            checkpoint = self._checkpoints.path(self._state.step) if self._state.step else None
            try:
                found = FoundStep(step + 1, position, reason, self.tuner.seen)
                folder = write_dump(self._config, found, ranks.rank, ranks.world_size, checkpoint)
                message = f"{message}; {folder} lists its examples with their losses"
            except (OSError, ValueError) as error:  # a full disk must not hide what happened
                message = f"{message}; it could not be dumped: {error}"
        ranks.barrier()
        return message

    def _told_to_stop(self) -> int:
        """Rank 0's word, for all: one that went by itself would leave the others in a collective."""
        word = self._ranks.share(bytes([self._stopped_by[0]]) if self._ranks.is_first else None)
        return 128 + word[0] if word[0] else 0

    def _record(self, step: int, report: dict[str, float], seconds: float) -> None:
        if not self._trackers:
            return
        record: dict[str, Any] = {
            "step": step,
            "num_steps": self._config.num_steps,
            "time": time.time(),
            "seconds": seconds,
            **report,
            "tokens_per_second": report["num_tokens"] / seconds if seconds else None,
            "phases": dict(self.tuner.phases),
        }
        self._files.append("metrics", [record])
        self._trackers.log(step, record)
        log.info("step", step=step, loss=round(report["loss"], 4), seconds=round(seconds, 2))

    def _evaluate(self, name: str, step: int) -> None:
        if self._held_out is None:
            return
        self._status("evaluating", f"{name}: held-out problems")
        started = time.monotonic()
        found = self.tuner.held_out(self._held_out)
        line = {"name": name, "step": step, "task": self._config.task, "mode": "held_out", "n": len(self._held_out)}
        line |= {**found, "seconds": time.monotonic() - started}
        if self._trackers:
            self._files.append("evaluations", [line])
            self._trackers.log(step, {"held_out": found})
            log.info("held-out", when=name, **{key: round(value, 4) for key, value in found.items()})

    def _is_evaluated(self, name: str, step: int) -> bool:
        """As rank 0's files say, for all."""
        known = bytes([self._files.has("evaluations", name=name, step=step)]) if self._ranks.is_first else None
        return bool(self._ranks.share(known)[0])

    def _save(self, step: int, position: int) -> None:
        first = self._ranks.is_first
        self.tuner.state.save(self._checkpoints.start(step, _no_other_writer) / "engine" if first else None)
        seconds = self._state.seconds + time.monotonic() - self._began
        self._state = RunState(
            step,
            0,
            position,
            seconds=seconds,
            num_steps=self._config.num_steps,
            identity=self._identity,
            options=options_of(self._config),
        )
        self._began = time.monotonic()
        if first:
            self._checkpoints.finish(self._state, _no_other_writer)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one. Rank 0 alone reads it."""
        first = self._ranks.is_first
        found = self._checkpoints.newest() if first else None
        if first:
            self._checkpoints.take_over(found[1] if found else None)
        place = [found[1].step, found[1].next_position] if found else None
        told = json.loads(self._ranks.share(json.dumps(place).encode() if first else None))
        if told is None:
            return False
        folder, self._state = found or (self._checkpoints.path(told[0]), RunState(told[0], 0, told[1]))
        self.tuner.state.load(folder / "engine")
        if first:
            say_other_length(self._config, self._state.num_steps, self._state.step, samples=False)
            say_changed_options(self._state.options, self._config)
        log.info("going on", step=self._state.step)
        return True

    def _status(self, phase: str, detail: str = "") -> None:
        if self._ranks.is_first:
            self._files.status(phase, detail)


def _listen(ranks: Ranks) -> list[int]:
    """A cell that holds the number of the signal that told us to stop, 0 until then. Only rank 0 hears any."""
    told = [0]

    def remember(number: int, *_: object) -> None:
        told[0] = number

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember if ranks.is_first else signal.SIG_IGN)
    return told


def _no_other_writer() -> None:
    """Nobody supersedes a fine-tuning."""


__all__ = ["fine_tune"]
