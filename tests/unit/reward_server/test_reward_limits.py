"""What a caller or a model may send at most: each is a clear result of that item, and costs next to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mmr1_reward_server.api import MAX_PIXELS, Item, Outcome, Result
from mmr1_reward_server.connections import Watch
from mmr1_reward_server.coordinates import MAX_OBJECTS
from mmr1_reward_server.errors import RequestError
from mmr1_reward_server.labels import read_label
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item, scored_item

TASKS = builtin_tasks()


def score(task: str, response: str, solution: Any, **params: Any) -> Result:
    item = Item(id="1", task=task, response=response, solution=solution, params=params, image_size=(100, 100))
    return score_item(TASKS, item, max_response_chars=1_000_000)


def objects(number: int) -> list[dict[str, Any]]:
    return [{"bbox_2d": [0, 0, 10, 10], "label": "dog"}] * number


def in_answer(value: Any) -> str:
    return f"<answer>```json\n{json.dumps(value)}\n```</answer>"


SOLUTIONS: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "counting": (lambda number: [[1, 2]] * number, {"score": "matching"}),
    "detection": (objects, {}),
    "pr1_counting": (lambda number: [[1, 2]] * number, {}),
    "pr1_detection": (lambda number: {"target_id": [18] * number, "target_box": [[0, 0, 9, 9]] * number}, {}),
    "vlmr1_weighted_sum": (lambda number: in_answer(objects(number)), {}),
    "vlmr1_od_ap": (lambda number: in_answer(objects(number)), {}),
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("task", SOLUTIONS)
def test_a_solution_has_as_many_objects_as_a_response_may_have(task: str, as_text: bool) -> None:
    make, params = SOLUTIONS[task]

    def result_of(number: int) -> Result:
        solution = make(number)
        return score(
            task, "", json.dumps(solution) if as_text and not isinstance(solution, str) else solution, **params
        )

    assert result_of(MAX_OBJECTS).outcome is not Outcome.VERIFIER_ERROR
    for number in (MAX_OBJECTS + 1, 10_000):
        refused = result_of(number)
        assert refused.outcome is Outcome.VERIFIER_ERROR
        assert refused.detail.startswith(f"solution for task {task}: ") and str(MAX_OBJECTS) in refused.detail


@pytest.mark.parametrize("task", ["ocr", "mmr1_ocr"])
def test_true_texts_are_bounded(task: str) -> None:
    assert score(task, "a", "a" * 100_000).outcome is Outcome.OK
    assert "100000" in score(task, "a", "a" * 100_001).detail


def test_a_text_that_grows_when_it_is_normalised_is_not_compared() -> None:
    grows = "\ufdfa"  # eighteen characters in NFKC
    assert score("ocr", grows * 100, grows * 100, unicode="NFKC").reward == 1.0
    bomb = score("ocr", grows * 100_000, "a" * 100_000, unicode="NFKC")
    assert (bomb.outcome, bomb.reward) == (Outcome.INVALID_OUTPUT, 0.0)
    assert bomb.detail == "the text has 1800000 characters when it is normalised"
    assert score("ocr", "a", grows * 100_000, unicode="NFKC").outcome is Outcome.VERIFIER_ERROR
    assert score("ocr", "a" * 500_000, "a", unicode="NFKC").outcome is Outcome.OK  # the server's limit, not this one


def test_half_a_surrogate_pair_can_be_sent_back() -> None:
    item = Item.model_construct(id="1", task="mmr1_ocr", response="\ud800", solution="a", params={}, image_size=None)
    assert scored_item(TASKS, item, max_response_chars=10).encoded.count(b'"?"') == 1


@pytest.mark.parametrize("size", [0, -1, MAX_PIXELS + 1, 10**400])
def test_sizes_that_no_image_has(size: int) -> None:
    with pytest.raises(ValueError, match="image_size"):
        Item(id="1", task="grounding", response="", solution=[0, 0, 1, 1], image_size=(size, 10))
    for task, solution in (("grounding", [0, 0, 1, 1]), ("vlmr1_iou", "<answer>[0, 0, 1, 1]</answer>")):
        assert score(task, "[0, 0, 1, 1]", solution, resized_size=[size, 10]).outcome is Outcome.VERIFIER_ERROR


def test_the_largest_size_is_calculated_with() -> None:
    result = score("grounding", "[0, 0, 1, 1]", [0, 0, 50, 50], resized_size=[MAX_PIXELS, MAX_PIXELS])
    assert result.outcome is Outcome.OK and result.reward is not None and 0 <= result.reward < 1e-9


def test_a_refusal_is_one_short_line() -> None:
    message = RequestError(422, "invalid_request", "a\nb\r\n" + "c" * 10**6).body.error.message
    assert message.startswith("a b ccc") and len(message) == 1000


class FakeConnection(SimpleNamespace):
    """What `Watch` looks at of a connection of uvicorn's."""

    __hash__ = object.__hash__

    def __init__(
        self, cycle: Any = None, paused: bool = False, keep_alive: bool = False, closing: bool = False
    ) -> None:
        self.left = 9
        self.aborted = False
        self.cycle, self.timeout_keep_alive_task = cycle, object() if keep_alive else None
        self.flow = SimpleNamespace(write_paused=paused)
        self.transport = SimpleNamespace(
            is_closing=lambda: closing,
            get_write_buffer_size=lambda: self.left,
            abort=lambda: setattr(self, "aborted", True),
        )


def cycle(*, done: bool = False, more: bool = False) -> SimpleNamespace:
    return SimpleNamespace(response_complete=done, more_body=more, like_no_other=object())


def test_connections_on_which_the_client_does_nothing_are_ended() -> None:
    stuck = [
        FakeConnection(),
        FakeConnection(cycle(done=True)),
        FakeConnection(cycle(more=True)),
        FakeConnection(cycle(), paused=True),
        FakeConnection(cycle(done=True), keep_alive=True, closing=True),
    ]
    in_order = [FakeConnection(cycle()), FakeConnection(cycle(done=True), keep_alive=True)]
    watch = Watch(10.0)
    for now in (0.0, 5.0, 10.0):
        watch.look({*stuck, *in_order}, now)
    assert not any(one.aborted for one in stuck)
    watch.look({*stuck, *in_order}, 10.1)
    assert all(one.aborted for one in stuck)
    watch.look(in_order, 100.0)
    assert not any(one.aborted for one in in_order)


def test_connections_on_which_something_moves_stay() -> None:
    next_head, taking = FakeConnection(), FakeConnection(cycle(), paused=True)
    watch = Watch(10.0)
    for now in range(0, 50, 5):
        next_head.cycle, taking.left = cycle(done=True), taking.left - 1
        watch.look([next_head, taking], float(now))
    assert not next_head.aborted and not taking.aborted


def test_a_label_that_no_json_could_hold_is_a_solution() -> None:
    for label in ('{"task": "\ud800"}', "{" * 100_000, '{"task": 1e999}', "{"):
        assert read_label(label).solution == label
