"""Supervised steps: forwards over prompts with their answers, the answers' cross-entropy, DeepSpeed's step.

The loss is the mean of -log p over the answer tokens of one whole optimizer step, over all forwards and ranks; prompts
have no term. It is what transformers' own trainer minimises with labels of -100 on the prompt. The same code runs on
every rank; it knows no files.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from mmr1.config.sft_options import SftConfig
from mmr1.dataset import order_of
from mmr1_learner.engine import make_engine
from mmr1_learner.errors import NonFiniteLossError
from mmr1_learner.loss import TokenStats
from mmr1_learner.model import Policy
from mmr1_learner.ranks import Ranks
from mmr1_learner.rows import RowBatch
from mmr1_learner.schedules import learning_rate
from mmr1_learner.supervised.dump import Seen
from mmr1_learner.supervised.examples import Examples
from mmr1_learner.training_state import TrainingState

Forward = tuple[int, ...]  # indices into the examples


class Tuner:
    """Policy and optimizer of one rank, and its share of every step."""

    def __init__(self, config: SftConfig, ranks: Ranks, policy: Policy, examples: Examples) -> None:
        self._config = config
        self._ranks = ranks
        self._examples = examples
        self._order = order_of(examples.problems, config)
        self._packing = ThreadPoolExecutor(1)  # images are opened and cut while the model computes
        self._ahead: tuple[int, list[Future[RowBatch]]] | None = None
        self.phases: dict[str, float] = defaultdict(float)
        self.seen: list[Seen] = []  # what this rank has scored of the step under way
        self.at_fault = False  # the loss that is not finite, or a gradient, which is everybody's, was found here
        self.engine = make_engine(config, policy)
        self.state = TrainingState(self.engine, ranks)

    @property
    def policy(self) -> Policy:
        module: Policy = self.engine.module
        return module

    @property
    def sequences_per_step(self) -> int:
        config = self._config
        return self._ranks.world_size * config.per_device_batch_size * config.gradient_accumulation_steps

    def close(self) -> None:
        self._packing.shutdown(cancel_futures=True)

    def step(self, step: int, position: int) -> dict[str, float]:
        """Optimizer step `step`, from 0, on the sequences from `position` of the data order.

        Raises:
            NonFiniteLossError: the loss or the gradient is; nothing this rank holds is to be kept. All ranks raise it
                at the same place; `seen` and `at_fault` say what was found here.
        """
        self.phases.clear()
        self.seen.clear()
        torch.manual_seed(hash((self._config.seed, step, self._ranks.rank)))  # a resumed run drops what this one drops
        rate = learning_rate(self._config, step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        forwards = self._forwards(position)
        waiting = self._take(position)
        self._ahead = (position + self.sequences_per_step, self._submit(position + self.sequences_per_step))
        total = 0.0
        for index, future in enumerate(waiting):
            with self._timed("encode"):
                batch = self._place(future.result())
            self.engine.set_gradient_accumulation_boundary(index == len(waiting) - 1)
            with self._timed("forward"):
                stats: TokenStats = self.engine(batch)
                loss = answer_loss(stats.logprobs, batch.weights)
            total += loss.item()
            self._see(forwards[index], stats.logprobs, batch)
            self._refuse_no_number(step, total)
            with self._timed("backward"):
                # DeepSpeed averages over ranks; the weights already divide by the tokens of all ranks.
                self.engine.backward(loss * self._ranks.world_size)
        norm = self._optimize(step)
        loss_sum = self._ranks.sum({"loss": total})["loss"]
        return {
            "loss": loss_sum,
            "grad_norm": norm,
            "learning_rate": rate,
            "num_tokens": float(self._num_tokens(position)),
        }

    @torch.no_grad()
    def held_out(self, examples: Examples) -> dict[str, float]:
        """`loss`, the mean of -log p over all answer tokens, and `answer_probability`, the mean of exp(sum of log p).

        The second is the share of problems that sampling at temperature 1 would answer word for word.
        """
        per_forward, world_size = self._config.per_device_batch_size, self._ranks.world_size
        sums = {"loss": 0.0, "num_tokens": 0.0, "probability": 0.0}
        self.policy.eval()
        for turn in range(math.ceil(len(examples) / (per_forward * world_size))):
            start = (turn * world_size + self._ranks.rank) * per_forward
            live = range(start, min(start + per_forward, len(examples)))
            # A rank that comes up short runs a dummy: with parameters in shares, every forward is a collective.
            # By the one thread that tokenises and cuts images: a tokenizer cannot be used by two at once.
            packed = self._packing.submit(examples.pack, live or (0,), [1.0] * len(live) or (0.0,)).result()
            batch = self._place(packed)
            logprobs = self.policy(batch).logprobs * batch.weights
            answers = torch.zeros(batch.num_sequences, device=logprobs.device)
            answers.index_add_(0, batch.sequences, logprobs)
            sums["loss"] -= float(logprobs.double().sum())
            sums["num_tokens"] += float(batch.weights.sum())
            sums["probability"] += float(answers.exp().double().sum()) if live else 0.0
        self.policy.train()
        totals = self._ranks.sum(sums)
        return {
            "loss": totals["loss"] / totals["num_tokens"],
            "answer_probability": totals["probability"] / len(examples),
        }

    def _place(self, batch: RowBatch) -> RowBatch:
        """On the device, for one forward: a step's pixels together may not fit there."""
        return batch.to(self._ranks.device, self.policy.hf.dtype)

    def _see(self, forward: Forward, logprobs: Tensor, batch: RowBatch) -> None:
        losses = torch.zeros(batch.num_sequences, device=logprobs.device)
        losses.index_add_(0, batch.sequences, -(logprobs.detach() * batch.weights))
        examples = self._examples
        self.seen += [Seen(examples.record(i), loss) for i, loss in zip(forward, losses.tolist(), strict=True)]

    def _refuse_no_number(self, step: int, loss: float) -> None:
        """All ranks leave together: the others would wait in a collective for the one that left."""
        self.at_fault = not math.isfinite(loss)
        if self._ranks.any(self.at_fault):
            bad = [seen.example for seen in self.seen if not math.isfinite(seen.loss)]
            rows = ", ".join(f"row {example['row']} ({example['problem'][:40]!r})" for example in bad)
            who = f"loss {loss} from {rows}" if self.at_fault else "the loss of another rank is not finite"
            raise NonFiniteLossError(f"step {step + 1}: {who}")

    def _optimize(self, step: int) -> float:
        """DeepSpeed's step. Returns the gradient's norm before clipping."""
        unpartitioned = None
        if self.engine.zero_optimization_stage() == 0:  # DeepSpeed clips then, but does not say what
            grads = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
            unpartitioned = float(torch.nn.utils.get_total_norm(grads))
        with self._timed("optimizer"):
            self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0) if unpartitioned is None else unpartitioned
        if not math.isfinite(norm):
            self.at_fault = True
            raise NonFiniteLossError(f"step {step + 1}: gradient norm {norm}")
        return norm

    def _forwards(self, position: int) -> list[Forward]:
        """This rank's forwards of the step that begins at `position`."""
        config, ranks = self._config, self._ranks
        size = config.per_device_batch_size
        forwards = []
        for turn in range(config.gradient_accumulation_steps):
            start = position + (turn * ranks.world_size + ranks.rank) * size
            forwards.append(tuple(self._order.index(place) for place in range(start, start + size)))
        return forwards

    def _num_tokens(self, position: int) -> int:
        """Answer tokens of the whole step, over all ranks."""
        places = range(position, position + self.sequences_per_step)
        return sum(self._examples.num_tokens(self._order.index(place)) for place in places)

    def _submit(self, position: int) -> list[Future[RowBatch]]:
        weight = 1.0 / self._num_tokens(position)
        pack = self._examples.pack
        return [self._packing.submit(pack, f, [weight] * len(f)) for f in self._forwards(position)]

    def _take(self, position: int) -> Sequence[Future[RowBatch]]:
        """The batches of the step at `position`, which are under way already unless it is the first."""
        if self._ahead is not None and self._ahead[0] == position:
            return self._ahead[1]
        return self._submit(position)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.phases[phase] += time.monotonic() - started


def answer_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """-sum of weight x log p, over [N] answer tokens: cross-entropy when the weights add up to 1."""
    return -(weights * logprobs).sum()


__all__ = ["Tuner", "answer_loss"]
