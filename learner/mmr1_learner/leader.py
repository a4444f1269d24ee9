"""Rank 0's duties beside training: the queue, the rollout servers, evaluation, and what the run leaves behind.

The loop in `train.py` calls it at the stations of a step. Other ranks have no leader. It computes no loss.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from mmr1.config import RunConfig
from mmr1.dataset import eval_problems, train_problems
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore, UnreachableImageError
from mmr1.records import PolicyVersion, PromptId
from mmr1.redis_access import RedisAccess
from mmr1.run_identity import identity_of, options_of, say_changed_options
from mmr1.streams import Patience, RunQueue
from mmr1.telemetry import following
from mmr1.tracing import now, record_span
from mmr1.wire import SchemaVersionError
from mmr1_learner import metrics as outputs
from mmr1_learner.checkpoint import Checkpoints, RunState
from mmr1_learner.completion_details import CompletionDetails
from mmr1_learner.connection import connect
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.evaluate import Evaluator, evaluation_records, say, tracked
from mmr1_learner.model import PromptEncoder
from mmr1_learner.parity import Scorer
from mmr1_learner.plan import StepPlan
from mmr1_learner.probing import Prober
from mmr1_learner.prompt_lengths import check_prompt_lengths
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from mmr1_learner.resume import check_prompts_per_step, reconcile
from mmr1_learner.schedules import say_other_length
from mmr1_learner.source import Collected, GroupSource
from mmr1_learner.step_records import completion_records, step_record
from mmr1_learner.token_gaps import Gaps
from mmr1_learner.trackers import Trackers
from mmr1_learner.updates import Updates
from mmr1_learner.weights import UpdateResult, WeightSender

log = structlog.get_logger()

_MAX_UNSCORED_STEPS = 3
_LATE_SERVER_SECONDS = 2.0  # between looks for rollout servers that joined late or missed an update


class Leader:
    """Everything that exactly one rank does."""

    def __init__(
        self, config: RunConfig, ranks: Ranks, policy: Published, encoder: PromptEncoder, checkpoints: Checkpoints
    ) -> None:
        self._config = config
        self._policy = policy
        self._checkpoints = checkpoints
        self.files = outputs.RunFiles(config.run_dir)
        self._problems = train_problems(config, check_images=False)  # they were, before the model was loaded
        self._prompts = PromptFactory(config, self._problems, encoder.forbidden_token_ids)
        held_out = eval_problems(config, check_images=False)
        for problems in (self._problems, held_out):
            check_prompt_lengths(config, encoder, self._prompts, problems)
        self._identity = identity_of(config, self._problems)
        self._evaluator = Evaluator(config, self._prompts, held_out) if held_out else None
        self._details = CompletionDetails(encoder.processor.tokenizer, ImageStore(config.resolved_image_root))
        patience = Patience(self._tick, self._redis_pauses, self._redis_is_back)
        self.queue = RunQueue(connect(RedisAccess.from_config(config)), config.run, patience)
        self._sender = WeightSender(config, self.queue, policy, config.reachable_host, ranks.device)
        scorer = Scorer(config, policy, encoder, ranks.device)
        self._prober = Prober(config, self._sender, scorer, policy, self._prompts, self._problems, self.files)
        self.updates = Updates(
            config, self._sender, self._prober, policy, self.files, self._tick, self._heed_stop, self._write_record
        )
        self._record: dict[str, Any] = {}  # of the last step, until it is known what became of its version
        self.version = PolicyVersion(0, 0)
        self._state = RunState(0, 0, 0)
        self._unsaved: list[PromptId] = []  # applied since the last durable checkpoint
        self._collected = Collected()
        self._source: GroupSource | None = None
        self._unscored_steps = 0
        self._last_look = 0.0
        self._started = time.monotonic()
        self._stop = False
        self._thread = threading.get_ident()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._trackers = Trackers(config, self.files, config.run_dir)

    def prepare(self, state: RunState | None) -> None:
        """Become the run's one learner, bring queue and servers to `state`, and prove that both engines agree."""
        self.take_over(state)
        outputs.MAX_OFF_POLICY_STEPS.set(self._config.max_off_policy_steps)
        outputs.export_accounts(self.queue.accounts())  # before anybody looks: a gauge that was never set is 0
        outputs.serve_metrics(self._config.host, self._config.learner_metrics_port)
        self.files.status("loading", "waiting for rollout servers")
        self._sender.wait_for_servers(self._config.rollout_replicas, self._tick)
        self.files.status("parity", "comparing log-probabilities with the rollout servers")
        self.updates.send(self.version, self._state.step, self._prober.gate)
        if state is None and self._config.eval_at_start:
            self._evaluate("before", 0)
        self._evaluate_if_due(self._state.step)
        self._started = time.monotonic()

    def take_over(self, state: RunState | None) -> None:
        """The part of it that needs no rollout server: the run is this learner's, and its queue stands at `state`.

        Raises:
            ConfigurationError: the run cannot go on from `state` with these options; it is still whose it was.
            OvertakenError: the last learner has written a checkpoint since `state` was read.
        """
        if state is not None:
            check_prompts_per_step(self._config, state)
            say_other_length(self._config, state.num_steps, state.step)
            say_changed_options(state.options, self._config)
        incarnation = self._become_writer()
        self._checkpoints.take_over(state, incarnation)
        self._state = state or self._state
        self.updates.count = self._state.num_weight_updates
        self.version = PolicyVersion(incarnation, self._state.version_number)
        next_position = reconcile(self.queue, state, self._prompts)
        self._source = GroupSource(self._config, self.queue, self._prompts, next_position, dict(self._state.lineage))
        self.files.rewind(state.step if state else -1)

    def _become_writer(self) -> int:
        """The next incarnation. The run folder remembers whose run it is and the last incarnation, if Redis forgets."""
        identity = self.files.read("run", {"run_id": uuid.uuid4().hex, "incarnation": 0})
        identity["identity"] = self._identity  # what waits in the queue is of this run, also before any checkpoint
        self.files.write("run", identity)
        incarnation = self.queue.become_writer(identity["run_id"], identity["incarnation"])
        self.files.write("run", {**identity, "incarnation": incarnation})
        return incarnation

    def next_plan(self, step: int) -> StepPlan:
        """Collect the groups of one step; a plan that says stop when we were told to."""
        assert self._source is not None
        self.files.status("training", f"step {step + 1} of {self._config.num_steps}")
        following(step=step + 1, version=self.version)
        try:
            self._tick()
            self._collected = self._source.collect(self.version, self._while_waiting)
        except StopRequestedError:
            self.updates.end()
            return StepPlan(step, (), stop=True)
        self._refuse_unscored(step)
        self._unsaved += [group.prompt.id for group in self._collected.groups]
        return StepPlan(step, tuple(self._collected.groups), version=self.version)

    def plan_ahead(self, step: int) -> bytes:
        """What `next_plan` of `step` will most likely say, encoded; empty when that is not known.

        The step before it is being computed: what this finds is encoded while that one ends.
        """
        assert self._source is not None
        if step >= self._config.num_steps or self._config.max_off_policy_steps == 0:
            return b""
        version = PolicyVersion(self.version.incarnation, self.version.number + 1)
        try:
            groups = self._source.look_ahead(version)
        except (StopRequestedError, UnreachableImageError, SchemaVersionError):  # again where the step is collected
            return b""
        return StepPlan(step, tuple(groups), version=version).encode() if groups else b""

    def _refuse_unscored(self, step: int) -> None:
        """A run in which nothing can be scored must not end as a success that trained nothing."""
        assert self._source is not None
        nothing = not self._collected.groups and self._collected.dropped["unscored"] > 0
        self._unscored_steps = self._unscored_steps + 1 if nothing else 0
        if self._unscored_steps == _MAX_UNSCORED_STEPS:
            raise ConfigurationError(
                f"step {step + 1}: no completion of {_MAX_UNSCORED_STEPS} steps could be scored; the reward server "
                f"says: {self._source.last_unscored}"
            )

    def after_step(
        self, plan: StepPlan, report: dict[str, float], phases: dict[str, float], seconds: float, gaps: Gaps
    ) -> None:
        """Send the new version, and write down what the step was; `gaps` are of the tokens to be kept."""
        started = time.monotonic()
        for group in plan.groups:
            record_span("step", group.prompt.id, now() - seconds, step=plan.step + 1)
        if self._config.proof:  # before any checkpoint can contain the step
            groups = [str(group.prompt.id) for group in plan.groups]
            self.files.append("proof", [{"step": plan.step + 1, "groups": groups}], durable=True)
        with suppress(StopRequestedError):
            self.updates.settle()  # a step without gradients has left it: the parameters are still those that were sent
        self.updates.end()
        lags, sampled_by = self._collected.lags, self.version
        self._state = replace(self._state, step=plan.step + 1)  # what is sampled from here on, probes too, is of it
        result = None
        if report:
            self.version = PolicyVersion(sampled_by.incarnation, sampled_by.number + 1)
            # The step is in the parameters: when told to stop, the checkpoint that ends the run contains it.
            with suppress(StopRequestedError):
                if self.updates.may_go_ahead(self._state.step):
                    self.updates.begin(self.version, self._state.step)
                else:
                    result = self.updates.send(self.version, self._state.step, self._prober.probe)
        sending = time.monotonic() - started
        took = {"wait": self._collected.wait_seconds, **phases}
        # The wait for the version before, which was in this step, too.
        took["weight_update"] = phases.get("weight_update", 0.0) + sending
        seconds += took["wait"] + sending
        self._record = step_record(self._config, plan, self._collected, report, took, seconds)
        self._record["policy_version"] = str(self.version)
        self.files.append("completions", completion_records(self._config, plan, lags, gaps, self._details))
        if not self.updates.are_under_way:
            self._write_record(result)
        with suppress(StopRequestedError):  # what is left is done when the run goes on; the checkpoint is not
            accounts = self.queue.accounts()
            outputs.export_accounts(accounts)
            log.info(
                "step",
                step=plan.step + 1,
                version=str(self.version),
                reward=round(self._record["reward_mean"] or 0.0, 3),
                groups=len(plan.groups),
                pending=accounts.ledger.pending,
                seconds=round(seconds, 2),
            )
            self._evaluate_if_due(plan.step + 1)

    def state_at(self, step: int) -> RunState:
        """What a checkpoint after `step` optimizer steps must remember."""
        assert self._source is not None
        accounts, pending = self.queue.snapshot()
        accounts.require_balance(self._config.run)
        ledger = accounts.as_dict()
        contained = tuple(self._unsaved)
        outstanding = pending - set(contained)
        return replace(
            self._state,
            step=step,
            version_number=self.version.number,
            num_weight_updates=self.updates.count,
            next_position=self._source.next_position,
            contained=contained,
            outstanding=tuple(sorted(outstanding)),
            ledger={**ledger, "trained": ledger["trained"] + len(contained)},
            seconds=self._state.seconds + time.monotonic() - self._started,
            prompts_per_step=self._config.prompts_per_step,
            num_steps=self._config.num_steps,
            identity=self._identity,
            options=options_of(self._config),
            lineage=tuple({**dict(self._state.lineage), self.version.incarnation: self.version.number}.items()),
        )

    def commit_checkpoint(self, state: RunState) -> None:
        """Make it durable, then acknowledge what it contains: in this order, so a crash between loses nothing."""
        # A learner that has been superseded is refused here, before the checkpoint gets its name.
        self._checkpoints.finish(state, self.queue.ensure_current)
        self.queue.acknowledge(list(state.contained))
        self._unsaved.clear()
        self.queue.prune()
        self.files.write("ledger", self.queue.ledger().as_dict())

    def finish(self) -> None:
        """After the last step: the closing evaluation and the final accounts."""
        last = self._config.num_steps
        # A run that was longer than before has an earlier end, measured then.
        if self._config.eval_at_end and not self.files.has("evaluations", name="after", step=last):
            self._evaluate("after", last)
        ledger = self.queue.ledger()
        self.files.write("ledger", ledger.as_dict())
        ledger.require_balance(self._config.run)
        self.queue.ensure_current()  # one that has been superseded exports nothing

    def close(self, exit_code: int) -> None:
        """Wait for nobody any more. The trackers hear whether the run has failed."""
        self._stop = True
        with suppress(Exception):  # what has ended the run is known already
            self.updates.end()
        self._sender.close()
        self._trackers.close(exit_code)

    def _write_record(self, result: UpdateResult | None) -> None:
        """The last step's, now that it is known what became of its version."""
        self._record["probe_max_abs_dlogp"] = result.probe_max_abs_dlogp if result else None
        self._record["update_phases"] = result.phases if result else {}
        self.files.append("metrics", [self._record])
        self._trackers.log(self._record["step"], self._record)
        outputs.export(self._record)

    def _evaluate(self, name: str, step: int) -> None:
        if self._evaluator is None:
            return
        self._tick()
        self.files.status("evaluating", f"{name}: held-out problems")
        temperature = self._config.temperature_at(max(0, step - 1), self._config.num_steps)
        found = self._evaluator.run(self._sender.clients(), temperature, self._tick)
        self.files.append("evaluations", evaluation_records(name, step, str(self.version), found))
        self._trackers.log(step, tracked(found))
        say(name, found)

    def _evaluate_if_due(self, step: int) -> None:
        """Once. A run that was told to stop in an evaluation goes on from that step's checkpoint: it is due then."""
        if self._config.evaluates_within(step, self._config.num_steps) and not self.files.has("evaluations", step=step):
            self._evaluate("step", step)

    def _while_waiting(self) -> None:
        """A rollout server that joined late, or missed an update, gets the current version before it serves."""
        self._tick()
        self.updates.settle()
        if time.monotonic() - self._last_look < _LATE_SERVER_SECONDS:
            return
        self._last_look = time.monotonic()
        outputs.export_accounts(self.queue.accounts())
        behind = self._sender.behind(self.version, self._tick)
        if behind:
            log.info("bringing rollout servers up to date", servers=[member.server_id for member in behind])
            self.updates.send(self.version, self._state.step, self._prober.late)

    def _redis_pauses(self, reason: str) -> None:
        log.warning("the run pauses", reason=reason)
        self.files.paused(reason)

    def _redis_is_back(self) -> None:
        log.info("the run goes on")
        self.files.repeat_status()

    def _tick(self) -> None:
        """Called all the while that we wait for somebody: the other ranks wait for us, with a deadline.

        Not for what goes on beside a step: they compute.
        """
        if threading.get_ident() == self._thread:
            self._policy.keep_alive()
        self._heed_stop()

    def _heed_stop(self) -> None:
        if self._stop:
            raise StopRequestedError

    def _on_signal(self, *_: object) -> None:
        self._stop = True
