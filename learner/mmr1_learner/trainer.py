"""One optimizer step: a plan's groups to rows, forwards, gradients, and DeepSpeed's step.

The same code runs on every rank with the rank's own share of the plan. It knows nothing of queues, rollout servers or
checkpoints' meaning; it hands out its engine for the last.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1_learner.batches import Batcher
from mmr1_learner.dumps import Update
from mmr1_learner.engine import make_engine
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.loss import LossReport, TokenBatch, TokenStats, compute_loss, means
from mmr1_learner.model import Policy, PromptEncoder
from mmr1_learner.plan import Forward, StepPlan, cut
from mmr1_learner.ranks import Ranks
from mmr1_learner.reference import Reference
from mmr1_learner.rows import RowBatch
from mmr1_learner.schedules import learning_rate
from mmr1_learner.step_watch import StepWatch
from mmr1_learner.token_gaps import Gaps, TokenGaps
from mmr1_learner.training_state import TrainingState


class Trainer:
    """Policy, reference and optimizer of one rank."""

    def __init__(
        self, config: RunConfig, ranks: Ranks, policy: Policy, encoder: PromptEncoder, reference: Policy | None
    ) -> None:
        self._config = config
        self._ranks = ranks
        torch.manual_seed(config.seed + ranks.rank)  # what adapters drop out is each rank's own
        self._batcher = Batcher(config, encoder)
        self._reference = None if reference is None else Reference(config, reference, ranks)
        # Called when a step's first batch is there, and nothing has been computed yet: the parameters are as sent.
        self.before_forwards: Callable[[], None] = _nothing
        # Called when all that one of a step's updates computes before its optimizer is launched: is it the last? A GPU
        # has work for a while then, except at ZeRO 3, and the host has none.
        self.while_computing: Callable[[bool], None] = _nothing
        # Called when the gradients of one of a step's updates are there, before the parameters move: is it the last?
        self.before_moving: Callable[[bool], None] = _nothing
        self._is_last = False
        # Seconds of the last step, by what the host was doing. On a GPU it launches and goes on, so what the GPU
        # computes shows where the host waits next.
        self.phases: dict[str, float] = defaultdict(float)
        self.gaps: Gaps = {}  # of the last step's tokens that are kept on record
        self.engine = make_engine(config, policy)
        self.watch = StepWatch(config, ranks, reference)
        moving = self._reference.policy if self._reference and self._reference.moves else None
        self.state = TrainingState(self.engine, ranks, moving)

    @property
    def policy(self) -> Policy:
        module: Policy = self.engine.module
        return module

    def expect(self, plan: StepPlan | None) -> None:
        """The next step is most likely this one: begin to make tensors of its images. None: there may be none."""
        if plan is None:
            self._batcher.forget()
            return
        updates = cut(plan, self._config, self._ranks.world_size)[self._ranks.rank]
        self._batcher.expect(plan, updates, self._prepare)

    def step(self, plan: StepPlan, only: Update | None = None) -> dict[str, float]:
        """Run one batch. Returns sums and means over all ranks; empty when there was nothing to train.

        `only` is one of the batch's updates, to be run again from the parameters that it began with.

        Raises:
            NonFiniteLossError: this rank must not go on; what it holds now is not to be kept.
        """
        try:
            report = self._train(plan, only)
        except NonFiniteLossError:
            self._batcher.forget()  # the next step's images may be on their way
            raise
        if self._reference and only is None:  # one update by itself is no step of the run
            self._reference.follow(self.policy, plan.step + 1)
        return report

    def _train(self, plan: StepPlan, only: Update | None) -> dict[str, float]:
        self.phases.clear()
        self.gaps = {}
        updates = cut(plan, self._config, self._ranks.world_size)[self._ranks.rank]
        if not any(updates):
            return {}
        rate = learning_rate(self._config, plan.step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        report, gaps, norms = LossReport(), TokenGaps(plan, self._config), []
        with self._batcher.ahead(plan, updates, self._prepare) as batches:
            self._begin(batches)
            todo = self._old_logprobs(batches) if only is None else {only.index: only.old_logprobs}
            last = max(index for index in todo if batches[index])
            for update, old in todo.items():
                if batches[update]:
                    self.watch.begin(plan, update, old, self.policy)
                    self._is_last = update == last
                    norms.append(self._optimize(batches[update], old, updates[update], report, gaps))
        totals = self._ranks.sum(report.sums)
        self.gaps = gaps.of_all(self._ranks)
        return {**means(totals, len(norms)), "grad_norm": max(norms), "learning_rate": rate}

    def _begin(self, batches: list[list[Future[RowBatch]]]) -> None:
        """Wait for the first batch: whoever must end before there are forwards has that long."""
        with self._timed("encode"):
            asked_for = (batch for update in [*batches[1:], *batches[:1]] for batch in update)  # in this order
            next(asked_for).exception()  # which is raised where it is asked for
        with self._timed("weight_update"):
            self.before_forwards()

    def _optimize(
        self,
        batches: list[Future[RowBatch]],
        old: Sequence[Tensor] | None,
        forwards: list[Forward],
        report: LossReport,
        gaps: TokenGaps,
    ) -> float:
        """Forwards and backwards of one optimizer step. Returns the gradient's norm before clipping."""
        for index, pending in enumerate(batches):
            batch = self._wait(pending)
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            with self._timed("reference"):
                reference = self._reference.projection(batch) if self._reference else None
            with self._timed("forward"):
                stats: TokenStats = self.engine(batch, reference)
                tokens = TokenBatch(
                    rollout_logprobs=batch.rollout_logprobs,
                    old_logprobs=old[index] if old else None,
                    advantages=batch.advantages,
                    weights=batch.weights,
                    on_policy=batch.on_policy,
                    in_policy_term=batch.in_policy_term,
                    in_kimikl=batch.in_kimikl,
                    sequences=batch.sequences,
                    num_sequences=batch.num_sequences,
                )
                loss, part = compute_loss(stats, tokens, self._config)
            report.merge(part)
            before = stats.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
            gaps.add(forwards[index], batch.sequences, before, batch.rollout_logprobs)
            self.watch.add(forwards[index], stats, tokens, loss)
            with self._timed("backward"):
                # DeepSpeed averages over ranks; the weights already divide by the sequences of all ranks.
                self.engine.backward(loss * self._ranks.world_size)
        with self._timed("weight_update"):
            self.while_computing(self._is_last)
        with self._timed("backward"):  # on a GPU most of it: the host has launched all, and waits for it here
            self.watch.check()
        unpartitioned = self._grad_norm() if self.engine.zero_optimization_stage() == 0 else None
        if unpartitioned is not None:
            self.watch.end(unpartitioned, moved=False)
        with self._timed("weight_update"):
            self.before_moving(self._is_last)
        with self._timed("optimizer"):
            self.engine.step()
        if unpartitioned is not None:
            return unpartitioned
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        # DeepSpeed leaves out a step whose norm is no number, unless its configuration says otherwise.
        self.watch.end(norm, moved=self.engine.was_step_applied())
        return norm

    def _grad_norm(self) -> float:
        """Of whole gradients, already averaged over ranks. Without ZeRO, DeepSpeed clips but does not report it."""
        grads = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _old_logprobs(self, batches: list[list[Future[RowBatch]]]) -> dict[int, Sequence[Tensor] | None]:
        """lp_old of every token. None for the first update: the policy has not moved, so its own forward gives it."""
        later = [[self._old_logprob(batch) for batch in update] for update in batches[1:]]
        return dict(enumerate([None, *later]))

    def _old_logprob(self, pending: Future[RowBatch]) -> Tensor:
        batch = self._wait(pending)
        with torch.no_grad(), self._timed("old_logprobs"):
            logprobs: Tensor = self.policy(batch).logprobs
        return logprobs

    def _prepare(self, batch: RowBatch) -> RowBatch:
        """In the host's memory so that `_place` has only to copy, and on a GPU need not wait for that."""
        batch = batch.to(torch.device("cpu"), self.policy.hf.dtype)
        return batch.pinned() if self._ranks.device.type == "cuda" else batch

    def _wait(self, pending: Future[RowBatch]) -> RowBatch:
        with self._timed("encode"):
            batch = pending.result()
        return self._place(batch)

    def _place(self, batch: RowBatch) -> RowBatch:
        """On the device, for one forward."""
        return batch.to(self._ranks.device, self.policy.hf.dtype)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.phases[phase] += time.monotonic() - started


def _nothing(*_: object) -> None:
    """Nobody waits for a step."""
