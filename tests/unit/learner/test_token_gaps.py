"""Tokens on record: bounded whatever the run, the same on every rank, and the numbers are the loss's own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mmr1_learner import token_gaps
from mmr1_learner.plan import StepPlan, cut
from mmr1_learner.ranks import Ranks
from mmr1_learner.token_gaps import MAX_TOKENS_PER_COMPLETION, MAX_TOKENS_PER_STEP, TokenGaps, on_record
from mmr1_learner.token_texts import TokenTexts
from tests.conftest import make_group, make_prompt
from tests.models import Letters, small_config

ALONE = Ranks(0, 1, torch.device("cpu"))


def plan_of(num_groups: int, length: int = 3, step: int = 0) -> StepPlan:
    groups = []
    for position in range(num_groups):
        group = make_group(make_prompt(position), (1.0, 0.0))
        long = replace(group.rollouts[0], token_ids=(7,) * length, logprobs=(-0.5,) * length)
        groups.append(replace(group, rollouts=(long, group.rollouts[1])))
    return StepPlan(step, tuple(groups))


def test_of_a_small_step_every_token_is_kept(tmp_path: Path) -> None:
    kept = on_record(plan_of(3), small_config(tmp_path))
    assert kept == {(group, place): 3 for group in range(3) for place in range(2)}


def test_a_steps_tokens_are_bounded_and_drawn_from_all_groups(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    kept = on_record(plan_of(40, length=5000), config)
    assert MAX_TOKENS_PER_STEP * 0.8 < sum(kept.values()) <= MAX_TOKENS_PER_STEP
    assert max(kept.values()) == MAX_TOKENS_PER_COMPLETION
    groups = {group for group, _ in kept}
    assert groups != set(range(len(groups))), "those that arrived first are those that were short"
    assert kept == on_record(plan_of(40, length=5000), config)


@pytest.mark.parametrize("num_steps", [60, 240, 241, 100_000])
def test_a_runs_steps_are_bounded_and_its_ends_are_kept(num_steps: int, tmp_path: Path) -> None:
    config = small_config(tmp_path, num_steps=num_steps)
    steps = [step for step in range(num_steps) if on_record(plan_of(1, step=step), config)]
    assert steps[0] == 0 and steps[-1] == num_steps - 1
    assert min(num_steps, 120) <= len(steps) <= token_gaps.MAX_STEPS + 1


def test_gaps_are_of_the_tokens_that_they_stand_beside(tmp_path: Path) -> None:
    """Two groups in one forward, in the plan's order and not in the forward's; a dummy's numbers are left out."""
    config = small_config(tmp_path)
    plan = plan_of(2, length=4)
    (((forward,),),) = cut(plan, config, 1)
    mixed = (forward[2], forward[0], forward[3], forward[1])  # groups 1, 0, 1, 0
    lengths = [4, 3, 4, 3]
    sequences = torch.tensor([place for place, length in enumerate(lengths) for _ in range(length)])
    learner = torch.arange(14.0)
    gaps = TokenGaps(plan, config)
    gaps.add(mixed, sequences, learner, torch.zeros(14))
    gaps.add((replace(forward[0], weight=0.0),), torch.zeros(4, dtype=torch.long), torch.ones(4), torch.zeros(4))
    assert gaps.of_all(ALONE) == {
        (1, 0): (0, 1, 2, 3),
        (1, 1): (4, 5, 6),
        (0, 0): (7, 8, 9, 10),
        (0, 1): (11, 12, 13),
    }


def test_a_completion_that_took_no_part_has_no_gaps(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    plan = plan_of(1)
    (((forward,),),) = cut(plan, config, 1)
    gaps = TokenGaps(plan, config)
    gaps.add(forward[:1], torch.zeros(3, dtype=torch.long), torch.full((3,), math.nan), torch.zeros(3))
    told = gaps.of_all(ALONE)
    assert list(told) == [(0, 0)] and all(math.isnan(gap) for gap in told[0, 0])


@pytest.mark.parametrize("text", ["<answer>3</answer>", " two  spaces\n", "日本語 naïve 🙂!", ""])
def test_tokens_texts_joined_are_the_completion(text: str, small_model: Path) -> None:
    for tokenizer in (AutoTokenizer.from_pretrained(small_model), Letters()):
        ids = tokenizer.encode(text, add_special_tokens=False)
        texts = TokenTexts(tokenizer).of(ids)
        assert len(texts) == len(ids) and "".join(texts) == text


def test_half_a_character_at_the_end_harms_nothing() -> None:
    assert TokenTexts(Letters()).of([*"a🙂".encode()[:-1], 256]) == ["a", "\ufffd", "", "", "<end>"]
