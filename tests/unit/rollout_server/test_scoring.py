"""From results to scores: weights, outcomes, and a reward server that is out of reach. The server is the real app."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from mmr1.records import Group, Outcome, Prompt, RewardSpec
from mmr1_reward_server.api import Outcome as ResultOutcome
from mmr1_reward_server.api import Result
from mmr1_reward_server.app import create_app
from mmr1_reward_server.client import RewardClient
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings
from mmr1_rollout_server.scoring import MAX_PARSED_CHARS, RewardOutageError, Scorer, combine, items_of, names_of
from tests.conftest import make_group, make_prompt


def prompt_with(*rewards: RewardSpec) -> Prompt:
    return replace(make_prompt(), rewards=rewards)


def result(outcome: str, reward: float | None, detail: str = "") -> Result:
    return Result(id="i", outcome=ResultOutcome(outcome), reward=reward, detail=detail)


def sampled(*texts: str, prompt: Prompt | None = None) -> Group:
    group = make_group(prompt or make_prompt())
    rollouts = tuple(replace(group.rollouts[0], text=text, score=None) for text in texts)
    return replace(group, rollouts=rollouts)


def test_the_reward_is_the_weighted_sum() -> None:
    prompt = prompt_with(RewardSpec("counting", 1.0), RewardSpec("format", 0.2))
    score = combine(prompt, [result("ok", 0.5), result("ok", 1.0)])
    assert (score.outcome, score.reward) == (Outcome.OK, pytest.approx(0.7))
    assert score.components == {"counting": 0.5, "format": 1.0}


def test_an_invalid_component_makes_the_sample_invalid_and_keeps_the_sum() -> None:
    prompt = prompt_with(RewardSpec("counting"), RewardSpec("format", 0.5))
    score = combine(prompt, [result("ok", 1.0), result("invalid_output", -1.0, "no answer")])
    assert (score.outcome, score.reward, score.detail) == (Outcome.INVALID_OUTPUT, 0.5, "no answer")


@pytest.mark.parametrize("failed", ["verifier_error", "timeout"])
def test_one_component_without_a_result_leaves_the_sample_without_a_reward(failed: str) -> None:
    prompt = prompt_with(RewardSpec("counting"), RewardSpec("format"))
    score = combine(prompt, [result("ok", 1.0), result(failed, None, "judge is down")])
    assert (score.outcome, score.reward) == (Outcome(failed), None)
    assert score.components == {"counting": 1.0}


def test_a_task_used_twice_keeps_both_components() -> None:
    prompt = prompt_with(
        RewardSpec("counting", 1.0, {"score": "exact"}), RewardSpec("counting", 0.5), RewardSpec("format")
    )
    assert names_of(prompt) == ["counting-1", "counting-2", "format"]


def test_what_was_read_is_kept_by_reward_and_bounded() -> None:
    box = {"bbox_2d": [1.0, 2.0, 3.0, 4.0], "label": "x" * 20}
    read = [5, [box] * 500, "y" * MAX_PARSED_CHARS, None]
    prompt = prompt_with(*(RewardSpec(task) for task in ("counting", "detection", "ocr", "format")))
    results = [result("ok", 1.0).model_copy(update={"parsed": parsed}) for parsed in read]
    parsed = combine(prompt, results).parsed
    assert list(parsed) == ["counting", "detection"] and parsed["counting"] == 5
    assert parsed["detection"] == [box] * len(parsed["detection"])
    assert MAX_PARSED_CHARS * 0.9 < len(json.dumps(parsed["detection"])) <= MAX_PARSED_CHARS


def test_items_are_rollout_by_rollout() -> None:
    items = items_of(sampled("a", "b"), (112, 56))
    assert [(item.id, item.task, item.response) for item in items] == [
        ("0/0/0/0", "counting", "a"),
        ("0/0/0/1", "format", "a"),
        ("0/0/1/0", "counting", "b"),
        ("0/0/1/1", "format", "b"),
    ]
    assert items[0].params == {"score": "graded"} and items[0].image_size == (112, 56) and items[0].solution == 3


async def test_a_group_scored_by_the_real_server() -> None:
    prompt = prompt_with(RewardSpec("counting"), RewardSpec("format", 0.5))
    app = create_app(Settings(), builtin_tasks())
    async with RewardClient("http://reward", 10.0, transport=httpx.ASGITransport(app)) as client:
        scored = await Scorer(client, client).score(sampled("<answer>3</answer>", "4", prompt=prompt), None)
    scores = [rollout.score for rollout in scored.rollouts]
    assert [score.reward for score in scores if score] == [1.5, 0.0]
    assert scored.score_seconds > 0


async def test_an_unreachable_server_is_an_outage_and_not_an_answer() -> None:
    async with RewardClient("http://127.0.0.1:9", 0.2) as client:
        with pytest.raises(RewardOutageError):
            await Scorer(client, client).score(sampled("3"), None)


async def test_a_server_that_is_there_but_fails_leaves_samples_without_reward() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/tasks":
            return httpx.Response(200, json={"tasks": [], "version": "1"})
        return httpx.Response(500, text="broken")

    async with RewardClient("http://reward", 1.0, transport=httpx.MockTransport(answer)) as client:
        scored = await Scorer(client, client).score(sampled("3", "4"), None)
    assert {rollout.score.outcome for rollout in scored.rollouts if rollout.score} == {Outcome.VERIFIER_ERROR}
    assert all(rollout.score and rollout.score.reward is None for rollout in scored.rollouts)


async def test_without_rewards_nothing_is_asked() -> None:
    group = sampled("3", prompt=prompt_with())
    async with RewardClient("http://127.0.0.1:9", 0.2) as client:
        assert await Scorer(client, client).score(group, None) is group
