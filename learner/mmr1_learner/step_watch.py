"""Follows an optimizer update forward by forward: whose loss is it, and is the update to be set aside?

While all is well it keeps a few numbers per token of the update under way, and the ranks agree before its optimizer
moves anything that it is: to look at a loss waits for the device, so that is done once and not after each forward. When
the loss or the gradient is not finite, on any of them, all leave the step together, once the dumps are written: the
ranks at fault find the groups at fault and have dumps.py write everything down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch
from torch import Tensor

from mmr1.config import RunConfig
from mmr1_learner import dumps
from mmr1_learner.dumps import Found, Update
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.loss import TokenBatch, TokenStats, compute_loss
from mmr1_learner.model import Policy
from mmr1_learner.plan import Forward, StepPlan
from mmr1_learner.ranks import Ranks

log = structlog.get_logger()
_T = TypeVar("_T", TokenStats, TokenBatch)


class StepWatch:
    """One rank's; every rank calls every method but `found`. `keep` is False in a replay, which writes no dumps."""

    def __init__(self, config: RunConfig, ranks: Ranks, reference: Policy | None, keep: bool = True) -> None:
        self._config = config
        self._ranks = ranks
        self._reference = reference
        self._keep = keep
        self._forwards: list[tuple[Forward, TokenStats, TokenBatch, Tensor]] = []
        self._aside: Path | None = None

    def begin(self, plan: StepPlan, index: int, old: Sequence[Tensor] | None, policy: Policy) -> None:
        """Before the first forward of update `index`. A step that `dump_steps` names is kept by its first update."""
        state = dumps.random_state(self._ranks.device)
        self._plan, self._policy = plan, policy
        self._update = Update(index, None if old is None else tuple(old), state)
        self._forwards.clear()
        self._aside = None
        if self._keep and index == 0 and plan.step + 1 in self._config.dump_steps:
            self._aside = self._write(whole=True)

    def add(self, forward: Forward, stats: TokenStats, tokens: TokenBatch, loss: Tensor) -> None:
        """After a forward, before its backward."""
        self._forwards.append((forward, _each(stats, Tensor.detach), _each(tokens, Tensor.detach), loss.detach()))

    def check(self) -> None:
        """After the last backward, before the optimizer moves the parameters.

        Raises:
            NonFiniteLossError: a loss is not finite, here or on another rank; where it is not, it names the groups at
                fault and the dump.
        """
        offending = next((loss for loss in self._losses() if not math.isfinite(loss)), None)
        if self._ranks.any(offending is not None):
            raise self._refusal(None if offending is None else f"loss {offending}", whole=True)

    def _losses(self) -> list[float]:
        """Of each forward so far; from the device all at once."""
        losses = [loss for *_, loss in self._forwards]
        values: list[float] = torch.stack(losses).tolist() if losses else []
        return values

    def end(self, grad_norm: float, moved: bool) -> None:
        """After `check`, with the norm over all ranks. `moved`: the optimizer has moved the parameters.

        Raises:
            NonFiniteLossError: the gradient is not finite.
        """
        if not math.isfinite(grad_norm):
            raise self._refusal(f"gradient norm {grad_norm}", whole=not moved, grad_norm=grad_norm)
        if self._aside is not None:
            folder = self._finish(self._aside, self.found(dumps.AS_ASKED, grad_norm))
            log.info("step kept for mmr1 replay", folder=str(folder))

    def found(self, reason: str, grad_norm: float | None = None) -> Found:
        """What the forwards so far came to, by group."""
        losses: dict[str, float] = {}
        for forward, stats, tokens, _ in self._forwards:
            for group, loss in group_losses(forward, stats, tokens, self._config).items():
                name = str(self._plan.groups[group].prompt.id)
                losses[name] = losses.get(name, 0.0) + loss.item()
        offending = tuple(name for name, loss in losses.items() if not math.isfinite(loss))
        return Found(reason, losses, offending, sum(self._losses()), grad_norm)

    def _refusal(self, reason: str | None, whole: bool, grad_norm: float | None = None) -> NonFiniteLossError:
        """Why the step is left. None: for another rank's reason, whose dump needs this one's help at stage 3."""
        step = f"step {self._plan.step + 1}"
        if reason is None:
            message = f"{step}: the loss of another rank is not finite"
        else:
            found = self.found(reason, grad_norm)
            who = f" from groups {', '.join(found.offending)}" if found.offending else ""
            message = f"{step}: {reason}{who}"
        if not self._keep:
            return NonFiniteLossError(message)
        try:
            aside = self._aside or self._write(whole, writes=reason is not None)
            if reason is not None and aside is not None:
                message = f"{message}; `mmr1 replay {self._finish(aside, found)}` runs it again"
        except dumps.NOT_WRITTEN as error:  # a full disk must not hide what happened
            message = f"{message}; it could not be dumped: {error}"
        self._ranks.barrier()  # whoever starts ranks ends all of them with the first: not before the dumps are whole
        return NonFiniteLossError(message)

    def _write(self, whole: bool, writes: bool = True) -> Path | None:
        """Begin a dump. `whole`: the parameters are those that the update began with, and belong to it.

        They are the same on every rank: the first that writes a dump writes them. The others gather with it.

        Raises:
            OSError, SafetensorError: the disk does not take it; what must be gathered has been.
        """
        aside: Path | None = None
        failures: list[Exception] = []
        self._writer = self._first_that(writes) if whole else self._ranks.rank
        try:
            aside = self._write_inputs() if writes else None
        except dumps.NOT_WRITTEN as error:
            failures.append(error)
        models = [(self._policy, dumps.PARAMETERS), (self._reference, dumps.REFERENCE)] if whole else []
        for model, kind in models:
            # With adapters switched off the policy is its own reference.
            if model is None or (kind == dumps.REFERENCE and model is self._policy):
                continue
            try:
                dumps.write_model(model, kind, aside if self._writer == self._ranks.rank and not failures else None)
            except dumps.NOT_WRITTEN as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return aside

    def _first_that(self, writes: bool) -> int:
        here, everybody = self._ranks.rank, range(self._ranks.world_size)
        told = self._ranks.sum({str(rank): float(writes and rank == here) for rank in everybody})
        return next(rank for rank in everybody if told[str(rank)])

    def _write_inputs(self) -> Path:
        return dumps.write_inputs(self._config, self._plan, self._update, self._ranks.rank)

    def _finish(self, aside: Path, found: Found) -> Path:
        ranks = self._ranks
        return dumps.finish(aside, self._config, self._update, found, ranks.rank, ranks.world_size, self._writer)


def group_losses(forward: Forward, stats: TokenStats, tokens: TokenBatch, config: RunConfig) -> dict[int, Tensor]:
    """Each group's part of a forward's loss, by its index in the plan: the objective over its tokens alone.

    Masking would not do: NaN times 0 is NaN. The parts add up to the forward's loss, up to rounding.
    """
    # In the order in which Batcher.pack lays completions out: a group after the other.
    owners = [group for group in dict.fromkeys(s.group for s in forward) for s in forward if s.group == group]
    assert len(owners) == tokens.num_sequences
    owner = torch.tensor(owners, device=tokens.sequences.device)[tokens.sequences]  # [N]
    num_tokens = len(owner)
    losses = {}
    for group in dict.fromkeys(owners):
        keep = (owner == group).nonzero()[:, 0]

        def own(values: Tensor, keep: Tensor = keep) -> Tensor:
            return values[keep] if values.dim() and values.shape[0] == num_tokens else values

        losses[group] = compute_loss(_each(stats, own), _each(tokens, own), config)[0]
    return losses


def _each(record: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """The same record with every tensor changed."""
    names = record._fields if isinstance(record, TokenStats) else [spec.name for spec in dataclasses.fields(record)]
    pairs = ((name, getattr(record, name)) for name in names)
    changed: dict[str, Any] = {name: change(value) for name, value in pairs if isinstance(value, Tensor)}
    return record._replace(**changed) if isinstance(record, TokenStats) else dataclasses.replace(record, **changed)


__all__ = ["StepWatch", "group_losses"]
