"""What the tests of the presets share: scoring by name, and texts that models might write."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.registry import Registry
from mmr1_reward_server.rewards.presets import PRESETS
from mmr1_reward_server.scoring import score_item

TASKS = Registry(PRESETS)

# Pieces of every notation that a preset reads, put together at random: far more often nearly right than any text.
PIECES = (
    *(
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "```json",
        "```",
        "\n",
        " ",
        ",",
        ".",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
    ),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|im_end|>", "<|endoftext|>"),
    *("[0, 0, 10, 10]", "(1,2),(30,40)", "(1,2,3,4)", "None", "1e999", "-1e999", "007", "-", "0.5", "1" * 400, "NaN"),
    *('[{"bbox_2d": [0, 0, 10, 10], "label": "dog"}]', '{"bbox_2d": [5, 5, 1, 1], "label": 3}', '"label": "\\ud800"'),
    *("dog", '"', "'", "\\", "$\\frac{1}{2}$", "３"),  # noqa: RUF001
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text()


def score(task: str, response: str, solution: Any, image_size: tuple[int, int] | None = None, **params: Any) -> Result:
    item = Item(id="1", task=task, response=response, solution=solution, params=params, image_size=image_size)
    return score_item(TASKS, item, max_response_chars=100_000)


def check_both(task: str, response: str, solution: Any, right: float, published: float, **params: Any) -> None:
    """The reward by default, and the one that the original gives."""
    for expected, bug_compatible in ((right, False), (published, True)):
        result = score(task, response, solution, bug_compatible=bug_compatible, **params)
        assert result.outcome.has_reward, result.detail
        assert result.reward == pytest.approx(expected, abs=1e-6), (bug_compatible, result)


def check_any_text(task: str, response: str, solution: Any, low: float, high: float, **params: Any) -> None:
    """A model's text is never our failure, its reward is within bounds, and the result can be sent."""
    result = score(task, response, solution, **params)
    assert result.outcome in (Outcome.OK, Outcome.INVALID_OUTPUT), result.detail
    assert result.reward is not None
    assert low - 1e-9 <= result.reward <= high + 1e-9
    assert result.reward >= TASKS[task].floor or params.get("bug_compatible")
    assert Result.model_validate_json(result.model_dump_json()) == result
