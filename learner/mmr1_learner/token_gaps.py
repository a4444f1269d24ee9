"""Which tokens of a step are kept on record, and what the learner thinks of each, less what the sampler thought.

The gap of a token is lp_old - lo: its log-probability under the policy that the step began with, minus the sampler's.
Its exponential is the importance ratio. Ranks meet here as numbers; who writes them down is no matter here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from torch import Tensor

from mmr1.config import RunConfig
from mmr1_learner.plan import Forward, Sample, StepPlan
from mmr1_learner.ranks import Ranks

# Together at most two million tokens of a run, which are some 40 MB of completions.jsonl, however long it is.
MAX_STEPS = 240  # of a run; of a longer one every second, third and so on
MAX_TOKENS_PER_STEP = 8192
MAX_TOKENS_PER_COMPLETION = 1024  # its first ones

Key = tuple[int, int]  # a completion's group and its place there, both as in the plan
Gaps = Mapping[Key, tuple[float, ...]]


def on_record(plan: StepPlan, config: RunConfig) -> dict[Key, int]:
    """Of which completions of the step how many tokens are kept: whole groups, drawn without a look at them."""
    every = math.ceil(config.num_steps / MAX_STEPS)
    if plan.step % every and plan.step + 1 != config.num_steps:
        return {}
    order = list(range(len(plan.groups)))
    random.Random(f"{config.seed}/{plan.step}/tokens").shuffle(order)
    kept: dict[Key, int] = {}
    left = MAX_TOKENS_PER_STEP
    for group in order:
        for place, rollout in enumerate(plan.groups[group].rollouts):
            count = min(len(rollout.token_ids), MAX_TOKENS_PER_COMPLETION)
            if count > left:
                return kept
            left -= count
            kept[group, place] = count
    return kept


class TokenGaps:
    """Those of one step, on one rank. Every rank makes one, adds its own forwards, and asks for all."""

    def __init__(self, plan: StepPlan, config: RunConfig) -> None:
        self._kept = on_record(plan, config)
        self._forwards: list[tuple[list[Sample], Tensor, Tensor]] = []  # as they were computed, where they were

    def add(self, forward: Forward, sequences: Tensor, learner: Tensor, sampler: Tensor) -> None:
        """One forward's tokens: the completion that each belongs to, and both log-probabilities of it; all [N]."""
        # In the order in which Batcher.pack lays completions out: a group after the other.
        owners = [s for group in dict.fromkeys(s.group for s in forward) for s in forward if s.group == group]
        if not any(sample.weight and (sample.group, sample.rollout) in self._kept for sample in owners):
            return
        self._forwards.append((owners, sequences, learner.detach() - sampler))

    def _here(self) -> dict[Key, list[float]]:
        """This rank's. To read them waits for the device, so it is done once, when a step is over."""
        found: dict[Key, list[float]] = {}
        for owners, sequences, values in self._forwards:
            gaps: list[float] = values.tolist()
            begin = 0
            for sample, length in zip(owners, sequences.bincount(minlength=len(owners)).tolist(), strict=True):
                count = self._kept.get((sample.group, sample.rollout))
                if count and sample.weight:  # else a dummy, which another rank runs in earnest
                    found[sample.group, sample.rollout] = gaps[begin : begin + min(count, length)]
                begin += length
        return found

    def of_all(self, ranks: Ranks) -> Gaps:
        """Of every completion on record that took part in the step, its tokens' gaps in nats."""
        mine: dict[str, float] = {}
        here = self._here()
        for key, count in self._kept.items():
            values = here.get(key)
            mine[f"{key}"] = float(values is not None)
            mine |= {f"{key} {place}": values[place] if values else 0.0 for place in range(count)}
        totals = ranks.sum(mine)
        return {
            key: tuple(totals[f"{key} {place}"] for place in range(count))
            for key, count in self._kept.items()
            if totals[f"{key}"]
        }


__all__ = ["Gaps", "Key", "TokenGaps", "on_record"]
