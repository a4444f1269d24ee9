"""What all dialects share: the collected router, its OpenAPI document, labels, and waiting for capacity."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from mmr1_reward_server import dialects
from mmr1_reward_server.api import Item
from mmr1_reward_server.dialects import openrlhf
from mmr1_reward_server.dialects.defaults import Defaults, usual_task
from mmr1_reward_server.dialects.halves import without_halves
from mmr1_reward_server.dialects.holding import Holding
from mmr1_reward_server.dialects.routing import make_item, route
from mmr1_reward_server.errors import RequestError
from mmr1_reward_server.labels import Label
from mmr1_reward_server.registry import BadItem, Registry
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.rewards.counting import COUNTING
from mmr1_reward_server.scoring import Overloaded, Scored
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_peers import Scripted, peer_tasks, peers, refusal
from tests.unit.reward_server.reward_scorers import item

SCORING_PATHS = ("/get_reward", "/slime", "/verify", "/ng-rollout/{rollout_id}/verify", "/judge", "/submit_task")
# Their clients know no missing reward, only HTTP errors.
FAILING_PATHS = ("/verify", "/ng-rollout/{rollout_id}/verify", "/judge")


async def test_all_routes_are_there_and_described() -> None:
    async with peers(dialects) as http:
        document = (await http.get("/openapi.json")).json()
    paths = document["paths"]
    scoring = [*SCORING_PATHS, "/verify_answer"]
    assert set(paths) >= {*scoring, *(f"{path}/{{task}}" for path in scoring), "/", "/health", "/task_result"}
    for path in scoring:
        for described in (paths[path]["post"], paths[f"{path}/{{task}}"]["post"]):
            asks = described["requestBody"]["content"]["application/json"]["schema"]
            assert asks["type"] == "object"
            statuses = {"200", "401", "404", "408", "413", "422", "503"}
            assert set(described["responses"]) == statuses | ({"500"} if path in FAILING_PATHS else set())
            assert described["description"]
        parameters = paths[f"{path}/{{task}}"]["post"]["parameters"]
        named = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
        assert named == ["rollout_id", "task"][-1 - ("rollout_id" in path) :]
        optional = [parameter["name"] for parameter in parameters if not parameter["required"]]
        assert optional == (["detail"] if path == "/slime" else [])
    (asked,) = paths["/task_result"]["get"]["parameters"]
    assert (asked["name"], asked["in"], asked["required"]) == ("reward_request_id", "query", False)
    by_body = paths["/task_result"]["get"]["requestBody"]
    assert by_body["required"] is False
    assert list(by_body["content"]["application/json"]["schema"]["properties"]) == ["reward_request_id"]
    references = str(document).split("#/components/schemas/")[1:]
    assert references
    assert {reference.partition("'")[0] for reference in references} <= set(document["components"]["schemas"])


def test_a_default_task_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(BadItem, match="did you mean 'counting'"):
        dialects.router(Scripted("ok"), peer_tasks(), Defaults("countin"))
    assert usual_task(peer_tasks()) == "accuracy"
    assert usual_task(Registry([COUNTING])) == "counting"


async def test_every_item_is_reported_once() -> None:
    seen: list[tuple[str, str]] = []

    def note(one: Item, scored: Scored) -> None:
        seen.append((one.task, scored.result.outcome.value))

    async with peers(openrlhf, Scripted("verifier_error"), on_scored=note) as http:
        await http.post("/get_reward", json={"query": ["3", "4"], "labels": [3, {"task": "ocr", "text": "4"}]})
    assert seen == [("counting", "verifier_error"), ("ocr", "verifier_error")]


@pytest.mark.parametrize(
    ("label", "routed"),
    [
        ("3", Label(None, "3", {})),
        (3, Label(None, 3, {})),
        (None, Label(None, None, {})),
        ([1, 2], Label(None, [1, 2], {})),
        ({"bbox_2d": [0, 0, 1, 1]}, Label(None, {"bbox_2d": [0, 0, 1, 1]}, {})),
        ({}, Label(None, {}, {})),
        ({"text": "a", "language": "en"}, Label(None, {"text": "a", "language": "en"}, {})),
        ({"text": "a"}, Label(None, "a", {})),
        ({"task": "ocr"}, Label("ocr", None, {})),
        ({"task": "ocr", "text": "a"}, Label("ocr", "a", {})),
        ({"task": 3}, Label(None, {"task": 3}, {})),
        (
            {"task": "ocr", "solution": "a", "params": {"b": 1}, "image_size": [2, 3]},
            Label("ocr", "a", {"b": 1}, [2, 3]),
        ),
        ({"solution": 3, "params": None}, Label(None, 3, {})),
        ({"task": None, "solution": 3, "text": None, "image_size": None}, Label(None, 3, {})),
        ({"task": "ocr", "solution": None, "text": "a"}, Label("ocr", "a", {})),
        ('{"task": "ocr", "text": "a"}', Label("ocr", "a", {})),
        ('{"text": "a"}', Label(None, '{"text": "a"}', {})),
        ("{", Label(None, "{", {})),
        ('[{"task": "ocr"}]', Label(None, '[{"task": "ocr"}]', {})),
    ],
)
def test_labels(label: Any, routed: Label) -> None:
    assert route(label) == routed


TASKS = peer_tasks()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["task", "text", "solution", "params", "a"]), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_label_is_an_item_or_refused(label: Any) -> None:
    try:
        routed = route(label)
        assert isinstance(make_item(TASKS, routed, "3", tasks=(routed.task, "counting")), Item)
    except RequestError as error:
        assert error.status_code == 422


MESSAGE = {"type": "message", "role": "assistant", "content": "%s"}
RESPONSES: list[tuple[str, dict[str, Any], str]] = [
    ("/get_reward/counting", {"query": ["%s"], "labels": ["3"]}, "[1.0]"),
    ("/slime/counting", {"prompt": "%s", "response": "%s", "label": "3"}, "1.0"),
    ("/verify/counting", {"responses_create_params": {}, "response": {"output": [MESSAGE]}, "label": "3"}, "1.0"),
    ("/judge/counting", {"response": "%s", "answer": "3", "format_ratio": 0.0}, "1.0"),
    ("/submit_task/counting", {"response": "%s", "reward_info": {"ground_truth": "3"}}, "ok"),
    ("/verify_answer/counting", {"prediction": "%s", "gold": "3"}, "correct"),
]


@pytest.mark.parametrize(("path", "body", "answered"), RESPONSES)
async def test_half_a_surrogate_pair_is_no_other_form(path: str, body: dict[str, Any], answered: str) -> None:
    """As Python's json writes what a decoder of tokens left."""
    content = json.dumps(body).replace("%s", "\\ud83d <answer>3</answer> \\ude00\\ud83d\\ude00\\ud83d")
    async with peers(dialects) as http:
        answer = await http.post(path, content=content.encode())
    assert answer.status_code == 200
    assert answered in answer.text


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from(list('\\uDdc80e"a\ud800\udbff\udc00\udfff😀')), max_size=12))
def test_only_halves_are_mended(text: str) -> None:
    body = json.dumps({text: text}).encode()
    whole = json.loads(body)
    mended = json.loads(without_halves(body))
    for before, after in zip([*whole.keys(), *whole.values()], [*mended.keys(), *mended.values()], strict=True):
        assert after == "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in before)
    assert from_json(without_halves(body)) == mended


async def test_a_body_of_another_form_is_refused_with_halves_as_well() -> None:
    async with peers(dialects) as http:
        for path, _, _ in RESPONSES:
            assert refusal(await http.post(path, content=b'{"a": "\\ud800"')) == (422, "invalid_request")


class Slots:
    """A `Scoring` with room for so many calls at once, that notes who came in."""

    num_pending = 0
    num_alive = 1
    unready: str | None = None

    async def start(self) -> None:
        pass

    def __init__(self, num_slots: int) -> None:
        self.num_free = num_slots
        self.entered: list[str] = []

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        if self.num_free == 0:
            raise Overloaded("full")
        self.num_free -= 1
        self.entered.append(items[0].id)
        await asyncio.sleep(0.03)
        self.num_free += 1
        return await Scripted("ok").score(items)

    async def close(self) -> None:
        pass


async def test_who_waits_first_is_scored_first() -> None:
    slots = Slots(1)
    holding = Holding(slots, Defaults("counting"))

    async def ask(name: str) -> list[Scored]:
        return await holding.score([item("counting", name=name)], num_bytes=1, hold_seconds=10)

    asked = []
    for number in range(8):
        asked.append(asyncio.ensure_future(ask(str(number))))
        await asyncio.sleep(0.01)
    scored = await asyncio.gather(*asked)
    assert [one[0].result.id for one in scored] == slots.entered == [str(number) for number in range(8)]


async def test_nobody_overtakes_those_who_wait() -> None:
    class Quick(Slots):
        async def score(self, items: Sequence[Item]) -> list[Scored]:
            if self.num_free == 0:
                raise Overloaded("full")
            self.entered.append(items[0].id)
            await asyncio.sleep(0)
            return await Scripted("ok").score(items)

    scoring = Quick(0)
    holding = Holding(scoring, Defaults("counting"))
    asked: list[asyncio.Task[list[Scored]]] = []

    def ask() -> None:
        one = item("counting", name=str(len(asked)))
        asked.append(asyncio.ensure_future(holding.score([one], num_bytes=1, hold_seconds=10)))

    for _ in range(5):
        ask()
    await asyncio.sleep(0.02)
    scoring.num_free = 1
    # Someone arrives in every turn of the loop, so also in that in which one who waited has just been let in.
    while not all(one.done() for one in asked[:5]):
        ask()
        await asyncio.sleep(0)
    await asyncio.gather(*asked)
    assert scoring.entered == [str(number) for number in range(len(asked))]


async def test_a_client_need_not_be_at_the_front_to_be_given_up() -> None:
    left: set[int] = set()
    held = [0, 0]

    def count(num_requests: int, num_bytes: int) -> None:
        held[0] += num_requests
        held[1] += num_bytes

    holding = Holding(Scripted("overloaded"), Defaults("counting", on_held=count))

    def ask(number: int) -> asyncio.Task[list[Scored]]:
        async def gone() -> bool:
            return number in left

        return asyncio.ensure_future(
            holding.score([item("counting")], num_bytes=10**number, hold_seconds=60, gone=gone)
        )

    asked = [ask(number) for number in range(4)]
    await asyncio.sleep(0.02)
    assert held == [4, 1111]
    left |= {1, 3}
    done, _ = await asyncio.wait(asked, timeout=1)
    assert done == {asked[1], asked[3]} and held == [2, 101]
    assert all("has left" in str(one.exception()) for one in done)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert held == [0, 0]


async def test_what_is_let_in_is_held_no_longer() -> None:
    slots = Slots(1)
    holding = Holding(slots, Defaults("counting", max_held_requests=1))

    async def ask() -> list[Scored]:
        return await holding.score([item("counting")], num_bytes=1, hold_seconds=10)

    scoring, held = asyncio.ensure_future(ask()), asyncio.ensure_future(ask())
    await scoring
    while len(slots.entered) < 2:
        await asyncio.sleep(0.001)
    assert [len(one) for one in await asyncio.gather(held, ask())] == [1, 1]  # the place among the held was free


async def test_what_waits_is_bounded() -> None:
    scoring = Scripted("overloaded")
    holding = Holding(scoring, Defaults("counting", max_held_requests=2, max_held_bytes=100))

    async def ask(num_bytes: int) -> str:
        began = time.monotonic()
        with pytest.raises(Overloaded) as refused:
            await holding.score([item("counting")], num_bytes=num_bytes, hold_seconds=0.3)
        return str(refused.value) if time.monotonic() - began < 0.2 else "held"

    assert "0 requests of 0 bytes" in await ask(101)
    held = [asyncio.ensure_future(ask(40)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert "2 requests of 80 bytes wait already" in await ask(1)
    assert await asyncio.gather(*held) == ["held", "held"]
    assert await ask(40) == "held"


async def test_a_client_that_left_is_given_up() -> None:
    async def gone() -> bool:
        return True

    began = time.monotonic()
    with pytest.raises(Overloaded, match="has left"):
        await Holding(Scripted("overloaded"), Defaults("counting")).score(
            [item("counting")], num_bytes=1, hold_seconds=60, gone=gone
        )
    assert time.monotonic() - began < 5


async def test_a_caller_who_is_cancelled_leaves_nothing_behind() -> None:
    scoring = InProcessScoring(TASKS, max_pending_items=1)
    holding = Holding(scoring, Defaults("counting"))
    first = asyncio.ensure_future(scoring.score([item("hangs")]))
    await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await holding.score([item("counting")], num_bytes=1, hold_seconds=60)
    scored = await holding.score([item("counting")], num_bytes=1, hold_seconds=60)
    assert scored[0].result.reward == 1.0
    assert (await first)[0].result.reward == 1.0
    assert scoring.num_pending == 0


async def test_only_what_failed_is_tried_again() -> None:
    class FirstFails(Scripted):
        async def score(self, items: Sequence[Item]) -> list[Scored]:
            scored = await super().score(items)
            return scored if len(self.calls) > 1 else [*scored[:1], *(await Scripted("ok").score(items[1:]))]

    scoring = FirstFails("timeout", "ok")
    items = [item("counting", name="a"), item("counting", name="b")]
    scored = await Holding(scoring, Defaults("counting")).score(items, num_bytes=1, hold_seconds=1)
    assert [one.result.reward for one in scored] == [0.5, 0.5]
    assert [[one.id for one in call] for call in scoring.calls] == [["a", "b"], ["a"]]


async def test_an_item_that_no_try_could_score_is_tried_once() -> None:
    registry = builtin_tasks()

    class Counted(InProcessScoring):
        num_scored = 0

        async def score(self, items: Sequence[Item]) -> list[Scored]:
            self.num_scored += len(items)
            return await super().score(items)

    scoring = Counted(registry)
    async with peers(dialects, scoring, registry) as http:
        row = {"responses_create_params": {}, "response": {"output": []}, "label": "a few"}
        assert refusal(await http.post("/verify/counting", json=row)) == (422, "verifier_error")
        assert scoring.num_scored == 1
        judged = {"response": "3", "answer": "a few"}
        assert refusal(await http.post("/judge/counting", json=judged)) == (422, "verifier_error")
        sample = {"response": "3", "label": "a few"}
        assert (await http.post("/slime/counting", json=sample)).json() == 0.0
        assert scoring.num_scored == 4
