"""What the loss is told of a token is what its own group was sampled with, and what the plan says of its sample."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from mmr1.errors import ConfigurationError
from mmr1.records import Group, PolicyVersion, VersionSpan
from mmr1_learner.batches import Batcher
from mmr1_learner.plan import Sample, StepPlan
from mmr1_learner.rows import EncodedPrompt, RowBatch
from tests.conftest import make_group, make_prompt
from tests.models import small_config

NOW, BEFORE = PolicyVersion(3, 7), PolicyVersion(3, 6)
PROMPT = EncodedPrompt((11, 12), torch.arange(2), {})
NEWEST = (VersionSpan(NOW, 0, 3),)


def batcher(folder: Path) -> Batcher:
    encoder = Mock(image_token_id=2, pad_token_id=0, sizes=None)
    encoder.another.return_value = encoder
    encoder.config.get_text_config.return_value.hidden_size = 64
    return Batcher(small_config(folder), encoder)


def group(position: int, temperature: float, *spans: tuple[VersionSpan, ...]) -> Group:
    """Completions of three tokens each, sampled by these versions."""
    prompt = make_prompt(position)
    one = make_group(replace(prompt, sampling=replace(prompt.sampling, temperature=temperature)))
    return replace(one, rollouts=tuple(replace(one.rollouts[0], spans=each) for each in spans))


def packed(folder: Path, plan: StepPlan, *samples: Sample) -> RowBatch:
    return batcher(folder).pack(plan, samples, {index: PROMPT for index in range(len(plan.groups))})


def by_token(*values: float) -> list[float]:
    return [pytest.approx(value) for value in values for _ in range(3)]


def test_a_group_is_scored_at_the_temperature_and_under_the_mask_that_it_was_sampled_with(tmp_path: Path) -> None:
    """Neither is the run's at this step: a linear temperature has moved on since."""
    plan = StepPlan(5, (group(0, 0.6, NEWEST, NEWEST), group(1, 1.4, NEWEST)), version=NOW)
    batch = packed(tmp_path, plan, Sample(0, 0, 1.0), Sample(1, 0, 1.0), Sample(0, 1, 1.0))
    assert batch.temperatures.tolist() == by_token(0.6, 0.6, 1.4), "a group after the other"
    assert batch.forbidden.tolist() == list(make_prompt().sampling.forbidden_token_ids) == [1, 5]


def test_only_what_the_current_version_sampled_alone_is_on_policy(tmp_path: Path) -> None:
    """An update in the middle of a completion, or the same number of another life, is another version."""
    middle = (VersionSpan(BEFORE, 0, 1), VersionSpan(NOW, 1, 3))
    other_life = (VersionSpan(PolicyVersion(2, 7), 0, 3),)
    plan = StepPlan(5, (group(0, 1.0, NEWEST, (VersionSpan(BEFORE, 0, 3),), middle, other_life),), version=NOW)
    batch = packed(tmp_path, plan, *(Sample(0, index, 1.0) for index in range(4)))
    assert batch.on_policy.tolist() == by_token(1, 0, 0, 0)


def test_a_sample_keeps_its_advantage_its_weight_and_its_terms(tmp_path: Path) -> None:
    plan = StepPlan(5, (group(0, 1.0, NEWEST, NEWEST),), version=NOW)
    samples = (
        Sample(0, 0, 1.5, 0.25, in_policy_term=True, in_kimikl=False),
        Sample(0, 1, -0.5, 0.75, in_policy_term=False, in_kimikl=True),
    )
    batch = packed(tmp_path, plan, *samples)
    assert batch.advantages.tolist() == by_token(1.5, -0.5)
    assert batch.weights.tolist() == by_token(0.25, 0.75)
    assert batch.in_policy_term.tolist() == by_token(1, 0)
    assert batch.in_kimikl.tolist() == by_token(0, 1)
    assert batch.targets.tolist() == [7, 8, 9] * 2
    assert batch.rollout_logprobs.tolist() == [-0.5, -0.25, -1.0] * 2


def test_a_steps_batches_are_made_ahead_with_each_prompt_encoded_once(tmp_path: Path) -> None:
    plan = StepPlan(5, (group(0, 1.0, NEWEST, NEWEST), group(1, 1.0, NEWEST)), version=NOW)
    one, asked = batcher(tmp_path), []
    one.encode = lambda _, forwards: (  # type: ignore[method-assign]
        asked.append(sorted({sample.group for forward in forwards for sample in forward})),
        {index: PROMPT for index in asked[-1]},
    )[1]
    updates = [[(Sample(0, 0, 1.0),)], [(Sample(0, 1, 1.0), Sample(1, 0, 2.0))]]
    with one.ahead(plan, updates, lambda batch: replace(batch, forbidden=torch.tensor([9]))) as pending:
        found = [[batch.result() for batch in update] for update in pending]
    # The second update first: its log-probabilities are taken before the first moves the policy.
    assert asked == [[0, 1], []]
    assert [[batch.advantages.tolist() for batch in update] for update in found] == [
        [by_token(1.0)],
        [by_token(1.0, 2.0)],
    ]
    assert all(batch.forbidden.tolist() == [9] for update in found for batch in update)


def test_what_fails_beside_the_step_is_raised_where_the_step_waits_for_it(tmp_path: Path) -> None:
    plan = StepPlan(5, (group(0, 1.0, NEWEST),), version=NOW)
    one = batcher(tmp_path)
    one.encode = Mock(side_effect=ValueError("an image went"))  # type: ignore[method-assign]
    ahead = one.ahead(plan, [[(Sample(0, 0, 1.0),)] * 3], lambda batch: batch)
    with pytest.raises(ValueError, match="an image went"), ahead as pending:
        pending[0][0].result()


def encoding(folder: Path) -> tuple[Batcher, list[str]]:
    """A batcher, and the prompts that it has encoded."""
    encoded: list[str] = []
    found = batcher(folder)
    found._encoder.encode = lambda text, _: encoded.append(text) or PROMPT  # type: ignore[method-assign,assignment]
    return found, encoded


def test_threads_encode_at_once_each_by_an_encoder_of_its_own(tmp_path: Path) -> None:
    """A tokenizer that two use at once fails; and one thread for all images would keep a GPU waiting."""
    plan, ((first, second, third),) = a_step(5, 0, 1, 2)
    met = threading.Barrier(3)
    free = [threading.Lock() for _ in range(3)]

    def own(lock: threading.Lock) -> Mock:
        def encode(*_: object) -> EncodedPrompt:
            assert lock.acquire(blocking=False), "two at once"
            met.wait(5)  # all three are in here
            lock.release()
            return PROMPT

        return Mock(encode=encode)

    encoder = Mock(sizes=None)
    encoder.another.side_effect = [own(lock) for lock in free]
    encoder.config.get_text_config.return_value.hidden_size = 64
    one = Batcher(small_config(tmp_path, learner_threads=3), encoder)
    for _ in range(20):
        assert one.encode(plan, [first, second, third]).keys() == {0, 1, 2}


def a_step(step: int, *positions: int) -> tuple[StepPlan, list[list[tuple[Sample, ...]]]]:
    groups = (group(position, 1.0, NEWEST) for position in positions)
    without_images = tuple(replace(one, prompt=replace(one.prompt, images=())) for one in groups)
    plan = StepPlan(step, without_images, version=NOW)
    return plan, [[(Sample(index, 0, 1.0),) for index in range(len(positions))]]


def batches(found: Batcher, plan: StepPlan, updates: list[list[tuple[Sample, ...]]]) -> list[RowBatch]:
    with found.ahead(plan, updates, lambda batch: batch) as under_way:
        return [batch.result() for update in under_way for batch in update]


def test_a_step_that_was_expected_is_not_encoded_again(tmp_path: Path) -> None:
    found, encoded = encoding(tmp_path)
    plan, updates = a_step(1, 0, 1)
    found.expect(plan, updates, lambda batch: batch)
    assert len(batches(found, StepPlan.decode(plan.encode()), updates)) == 2
    assert len(encoded) == 2
    batches(found, *a_step(2, 2))
    assert len(encoded) == 3, "what was expected is expected once"


@pytest.mark.parametrize("other", [a_step(1, 0, 2), a_step(2, 0, 1), a_step(1, 1, 0)])
def test_another_step_than_the_expected_is_encoded_anew(
    tmp_path: Path, other: tuple[StepPlan, list[list[tuple[Sample, ...]]]]
) -> None:
    found, _ = encoding(tmp_path)
    found.expect(*a_step(1, 0, 1), lambda batch: pytest.fail("these batches are nobody's"))
    assert len(batches(found, *other)) == 2


def test_an_image_that_went_fails_the_step_that_asks_for_it_and_not_the_one_before(tmp_path: Path) -> None:
    found, _ = encoding(tmp_path)
    plan, updates = a_step(1, 0)
    found._encoder.encode = Mock(side_effect=ConfigurationError("gone"))  # type: ignore[method-assign]
    found.expect(plan, updates, lambda batch: batch)
    with pytest.raises(ConfigurationError, match="gone"):
        batches(found, plan, updates)
    found.expect(plan, updates, lambda batch: batch)
    found.forget()
