"""What a step leaves on record is what it was made of: each completion's verdict, and the figures of the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from mmr1.images import ImageStore
from mmr1.records import FinishReason, Group, Outcome, PolicyVersion, RewardSpec, Score, VersionSpan
from mmr1_learner.completion_details import CompletionDetails
from mmr1_learner.plan import StepPlan, cut
from mmr1_learner.source import Collected
from mmr1_learner.step_records import completion_records, step_record
from tests.conftest import make_group, make_prompt
from tests.models import Letters, small_config

VERDICTS = (
    Score(Outcome.OK, 1.2, {"counting": 1.0, "format": 0.4}),
    Score(Outcome.INVALID_OUTPUT, 0.0, {"counting": 0.0, "format": 0.0}, "no number"),
    Score(Outcome.VERIFIER_ERROR, None, {}, "it broke"),
)


def details(folder: Path) -> CompletionDetails:
    return CompletionDetails(Letters(), ImageStore(folder))


def judged(position: int = 0) -> Group:
    group = make_group(make_prompt(position), (1.0, 1.0, 1.0))
    rollouts = [replace(one, score=score) for one, score in zip(group.rollouts, VERDICTS, strict=True)]
    older = (VersionSpan(PolicyVersion(2, 4), 0, 1), VersionSpan(PolicyVersion(2, 5), 1, 3))
    rollouts[1] = replace(rollouts[1], text="many", spans=older, finish_reason=FinishReason.LENGTH)
    return replace(group, rollouts=tuple(rollouts))


def test_a_completion_is_recorded_with_its_verdict_and_who_sampled_it(tmp_path: Path) -> None:
    plan = StepPlan(4, (judged(9),))
    lines = list(completion_records(small_config(tmp_path), plan, [2], {}, details(tmp_path)))
    expected: dict[str, list[Any]] = {
        "reward": [1.2, 0.0, None],
        "components": [{"counting": 1.0, "format": 0.4}, {"counting": 0.0, "format": 0.0}, {}],
        "outcome": ["ok", "invalid_output", "verifier_error"],
        "detail": ["", "no number", "it broke"],
        "completion": ["3", "many", "3"],
        "policy_version": ["1.0", "2.4", "1.0"],
        "finish_reason": ["stop", "length", "stop"],
    }
    assert {name: [line[name] for line in lines] for name in expected} == expected
    same = {"step": 5, "prompt_id": "9/0", "task": "counting", "solution": 3, "policy_lag": 2, "server": "rollout-0"}
    same |= {"images": ["a/b.png"], "problem": "How many?", "prompt": make_prompt().text}
    assert all({name: line[name] for name in same} == same for line in lines)
    assert lines[0]["advantage"] == pytest.approx(-lines[1]["advantage"]) and lines[0]["advantage"] > 0.5
    assert lines[2]["advantage"] is None


def test_a_completion_that_is_on_record_is_told_token_by_token(tmp_path: Path) -> None:
    """With what was read out of it, what its boxes count, and the image's size as it is looked at."""
    (tmp_path / "a").mkdir()
    photo = Image.new("RGB", (40, 30))
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(tmp_path / "a" / "b.jpg", exif=exif)
    group = judged(9)
    boxes = [{"bbox_2d": [1, 2, 3, 4], "label": "7"}]
    score = Score(Outcome.OK, 1.0, {"detection": 1.0}, "", {"detection": boxes})
    first = replace(group.rollouts[0], token_ids=(*"é7".encode(), 256), logprobs=(-1.0,) * 4, score=score)
    specs = (RewardSpec("detection", 1.0, {"response_space": "normalized_1000", "score": "f1"}), RewardSpec("format"))
    image = ImageStore(tmp_path).ref("a/b.jpg")
    prompt = replace(group.prompt, rewards=specs, images=(image, replace(image, path="gone.png")))
    plan = StepPlan(4, (replace(group, prompt=prompt, rollouts=(first, *group.rollouts[1:])),))
    gaps = {(0, 0): (0.25, -1.23456e-7, 0.0)}
    lines = list(completion_records(small_config(tmp_path), plan, [0], gaps, details(tmp_path)))
    assert lines[0]["tokens"] == ["é", "", "7"] and lines[0]["gaps"] == [0.25, -1.23e-7, 0.0]
    assert lines[0]["parsed"] == {"detection": boxes}
    assert lines[0]["coordinates"] == {"detection": {"response_space": "normalized_1000"}}
    assert lines[0]["image_sizes"] == [[30, 40], None]
    assert "tokens" not in lines[1] and lines[1]["parsed"] == {}


@pytest.mark.parametrize(
    "options", [{}, {"reward_shuffle": True}, {"reward_scale": 2.0, "objective": "dr_grpo"}, {"overlong": "mask"}]
)
def test_a_completions_advantage_is_the_one_it_was_trained_with(options: dict[str, Any], tmp_path: Path) -> None:
    """The control's too: its rewards as scored, and the advantage of the reward that the shuffle dealt it."""
    config = small_config(tmp_path, **options)
    plan = StepPlan(4, tuple(make_group(make_prompt(place), (1.0, 0.25 * place, 0.0)) for place in range(3)))
    first = plan.groups[0].rollouts[0]
    cut_off = replace(plan.groups[0], rollouts=(replace(first, finish_reason=FinishReason.LENGTH),) * 2)
    plan = replace(plan, groups=(cut_off, *plan.groups[1:]))
    lines = list(completion_records(config, plan, [0, 0, 0], {}, details(tmp_path)))
    assert [line["reward"] for line in lines] == [1.0, 1.0, 1.0, 0.25, 0.0, 1.0, 0.5, 0.0]
    (((forward, *_),),) = cut(plan, config, 1)
    trained = {(sample.group, sample.rollout): sample.advantage for sample in forward}
    places = [(index, turn) for index, group in enumerate(plan.groups) for turn in range(len(group.rollouts))]
    assert [line["advantage"] for line in lines] == [trained.get(place) for place in places]


def test_a_steps_line_says_what_its_groups_were(tmp_path: Path) -> None:
    collected = Collected(lags=[0, 0, 0, 1, 4], dropped=Counter({"stale": 2}))
    linear = {"temperature_func": "linear", "temperature_begin": 0.5, "temperature_end": 1.0, "num_steps": 6}
    plan = StepPlan(4, (judged(),))
    record = step_record(small_config(tmp_path, **linear), plan, collected, {"num_tokens": 9.0}, {"wait": 1.5}, 2.0)
    expected = {
        "step": 5,
        "num_steps": 6,
        "reward_mean": 0.6,
        "reward_std": 0.6,
        "reward_by_task": {"counting": 0.6},
        "components": {"counting": 0.5, "format": 0.2},
        "outcomes": {"ok": 1, "invalid_output": 1, "verifier_error": 1},
        "temperature": 0.9,
        "lag_mean": 1.0,
        "lag_max": 4,
        "lag_p50": 0,
        "lag_p90": 4,
        "completion_length_mean": 3.0,
        "tokens_per_second": 4.5,
        "num_groups": 1,
        "num_rollouts": 3,
        "dropped": {"stale": 2},
        "phases": {"wait": 1.5},
    }
    for name, value in expected.items():
        assert record[name] == pytest.approx(value), name


@pytest.mark.parametrize(("lags", "expected"), [([3], (3, 3)), ([4, 1, 2], (2, 4)), ([*range(10)], (4, 8)), ([], None)])
def test_a_quantile_of_lags_is_one_of_them(lags: list[int], expected: tuple[int, int] | None, tmp_path: Path) -> None:
    """The smallest that half of the groups, and nine tenths, do not exceed."""
    record = step_record(small_config(tmp_path), StepPlan(0, ()), Collected(lags=lags), {}, {}, 1.0)
    assert (record["lag_p50"], record["lag_p90"]) == (expected or (None, None))


def test_the_mean_reward_is_reported_by_task(tmp_path: Path) -> None:
    other = replace(judged(1), prompt=replace(judged(1).prompt, task="grounding"))
    rollouts = tuple(replace(one, score=replace(VERDICTS[0], reward=0.2)) for one in other.rollouts)
    unscored = replace(judged(2), prompt=replace(judged(2).prompt, task="ocr"))
    nothing = tuple(replace(one, score=VERDICTS[2]) for one in unscored.rollouts)
    plan = StepPlan(0, (judged(0), replace(other, rollouts=rollouts), replace(unscored, rollouts=nothing)))
    record = step_record(small_config(tmp_path), plan, Collected(), {}, {}, 1.0)
    assert record["reward_by_task"] == {"counting": pytest.approx(0.6), "grounding": pytest.approx(0.2)}
