"""One optimizer step's work, cut over ranks and forwards so that every rank does the same number of forwards.

Rank 0 shares the step's groups as bytes; every rank cuts them the same way. A rank that comes up short runs dummies: a
real row with weight 0, image included, so that it enters every collective of both towers.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmr1.config import RunConfig
from mmr1.records import Group, PolicyVersion
from mmr1.wire import decode_group, encode_group
from mmr1_learner.group_rewards import training_rewards
from mmr1_learner.loss import group_advantages, has_variance, token_weights

_LENGTH = struct.Struct("<I")
_NO_VERSION = PolicyVersion(0, 0)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What rank 0 tells the others: the step's groups, or that there is nothing more to do.

    `version` is the learner's own at this step: what tells its samples from those of an older policy.
    """

    step: int
    groups: tuple[Group, ...]
    stop: bool = False
    version: PolicyVersion = _NO_VERSION

    def encode(self) -> bytes:
        header = json.dumps({"step": self.step, "stop": self.stop, "version": self.version}).encode()
        parts = [header, *(encode_group(group) for group in self.groups)]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    @classmethod
    def decode(cls, data: bytes) -> StepPlan:
        parts, offset = [], 0
        while offset < len(data):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size
            parts.append(data[offset : offset + length])
            offset += length
        header = json.loads(parts[0])
        groups = tuple(decode_group(part) for part in parts[1:])
        return cls(header["step"], groups, header["stop"], PolicyVersion(*header["version"]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout that takes part in the loss: where it is, its advantage, and its tokens' weight.

    The last two say which terms it has a part in, beside those that all have.
    """

    group: int
    rollout: int
    advantage: float
    weight: float = 0.0
    in_policy_term: bool = True
    in_kimikl: bool = True


Forward = tuple[Sample, ...]


def cut(plan: StepPlan, config: RunConfig, world_size: int) -> list[list[list[Forward]]]:
    """forwards[rank][update] is the list of forwards that `rank` runs in optimizer step `update` of this batch.

    Samples without a reward take no part: no statistic, no term, no denominator. Each token's weight is its share of
    the same update, over all ranks, as `aggregation` says.
    """
    samples = _samples(plan, config)
    updates = [_share(samples, index, config.num_updates_per_batch) for index in range(config.num_updates_per_batch)]
    forwards: list[list[list[Forward]]] = [[] for _ in range(world_size)]
    for update in updates:
        weights = token_weights([_length(plan, sample) for sample in update], config)
        weighted = [replace(sample, weight=weight) for sample, weight in zip(update, weights, strict=True)]
        per_forward = config.per_device_batch_size
        num_forwards = math.ceil(len(weighted) / (per_forward * world_size))
        # Even shares: no rank idles while another runs a full forward.
        size = math.ceil(len(weighted) / (world_size * num_forwards)) if weighted else 0
        for rank in range(world_size):
            runs = []
            for turn in range(num_forwards):
                start = (turn * world_size + rank) * size
                chunk = tuple(weighted[start : start + size])
                runs.append(chunk or (Sample(weighted[0].group, weighted[0].rollout, 0.0),))
            forwards[rank].append(runs)
    return forwards


def _share(samples: list[Sample], index: int, parts: int) -> list[Sample]:
    size = math.ceil(len(samples) / parts)
    return samples[index * size : (index + 1) * size]


def _length(plan: StepPlan, sample: Sample) -> int:
    return len(plan.groups[sample.group].rollouts[sample.rollout].token_ids)


def step_rewards(plan: StepPlan, config: RunConfig) -> list[list[float | None]]:
    """What each rollout of each group is trained by: scaled, with what being too long costs, and shuffled if so asked.

    None for one that takes part in nothing.
    """
    rewards = [training_rewards(group, config) for group in plan.groups]
    return _shuffled(rewards, random.Random(f"{config.seed}/{plan.step}")) if config.reward_shuffle else rewards


def _samples(plan: StepPlan, config: RunConfig) -> list[Sample]:
    samples = []
    for group_index, (group, rewards) in enumerate(zip(plan.groups, step_rewards(plan, config), strict=True)):
        advantages = group_advantages(rewards, config.objective)
        in_policy_term = has_variance(rewards)
        in_kimikl = config.kimikl_task_id in (None, group.prompt.task)
        for index, advantage in enumerate(advantages or ()):
            if advantage is not None and group.rollouts[index].token_ids:
                sample = Sample(group_index, index, advantage, in_policy_term=in_policy_term, in_kimikl=in_kimikl)
                samples.append(sample)
    return samples


def _shuffled(rewards: Sequence[Sequence[float | None]], rng: random.Random) -> list[list[float | None]]:
    """The control: the batch's rewards, dealt out at random to the samples that had one."""
    deck = [reward for group in rewards for reward in group if reward is not None]
    rng.shuffle(deck)
    dealt = iter(deck)
    return [[None if reward is None else next(dealt) for reward in group] for group in rewards]
