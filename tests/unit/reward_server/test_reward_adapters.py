"""The adapters against a real server, called as their trainers call them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import math
import pickle
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest

from mmr1_reward_server import adapters
from mmr1_reward_server.adapters import RewardUnavailable, calls, for_easyr1
from mmr1_reward_server.app import create_app
from mmr1_reward_server.settings import Settings
from tests.unit.reward_server.reward_in_process import InProcessScoring
from tests.unit.reward_server.reward_live import live
from tests.unit.reward_server.reward_peers import peer_tasks

RIGHT, WRONG, MUTE = "<answer>3</answer>", "<answer>4</answer>", "no idea"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    tasks = peer_tasks()
    scoring = InProcessScoring(tasks, deadlines={"hangs": 0.2}, max_pending_items=2000)
    with live(create_app(Settings(), tasks, scoring)) as address:
        yield address


@pytest.fixture(autouse=True)
def configured(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMR1_REWARD_URL", url)
    monkeypatch.setenv("MMR1_REWARD_TASK", "counting")


def flags(score: str, value: float, failed: float = 0.0, invalid: float = 0.0) -> dict[str, float]:
    return {score: value, "reward_failed": failed, "invalid_output": invalid}


VERL = [
    (RIGHT, "3", {}, flags("score", 1.0)),
    (WRONG, 3, {}, flags("score", 0.0)),
    (MUTE, "3", {}, flags("score", 0.0, invalid=1.0)),
    (WRONG, "3", {"params": {"score": "graded"}}, flags("score", pytest.approx(2 / 3))),
    (WRONG, "3", {"task": "ocr"}, flags("score", 0.25)),
    (WRONG, {"task": "ocr", "text": "3"}, {}, flags("score", 0.25)),
    (WRONG, {"task": "ocr", "text": "3"}, {"task": "counting"}, flags("score", 0.0)),
    (RIGHT, "3", {"task": "raises", "failed_score": -2}, flags("score", -2.0, failed=1.0)),
]


@pytest.mark.parametrize(("response", "truth", "options", "expected"), VERL)
async def test_verl(response: str, truth: Any, options: dict[str, Any], expected: dict[str, float]) -> None:
    # As NaiveRewardManager calls it: by keyword, with what the configuration adds merged last.
    asked = {
        "data_source": "a",
        "solution_str": response,
        "ground_truth": truth,
        "extra_info": {"num_turns": None, "rollout_reward_scores": {}, "image_size": (640, 480)},
        **options,
    }
    assert await asyncio.to_thread(lambda: adapters.verl_reward(**asked)) == expected
    assert await adapters.verl_reward_async(**asked, reward_router_address=None) == expected


async def test_verl_ends_the_run_rather_than_inventing_a_reward() -> None:
    with pytest.raises(RewardUnavailable, match="verifier_error: scorer of raises failed"):
        await adapters.verl_reward_async(solution_str=RIGHT, ground_truth="3", task="raises")
    with pytest.raises(RewardUnavailable, match="timeout: the scorer of this item did not finish within"):
        adapters.verl_reward(solution_str=RIGHT, ground_truth="3", task="hangs")
    with pytest.raises(RewardUnavailable, match=r"within 0\.2 s"):
        adapters.verl_reward(solution_str=RIGHT, ground_truth="3", url="http://127.0.0.1:1", deadline_seconds=0.2)


def test_easyr1_as_it_loads_it() -> None:
    assert adapters.easyr1_reward is for_easyr1.easyr1_reward
    spec = importlib.util.spec_from_file_location("custom_reward_fn", for_easyr1.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.REWARD_TYPE, module.REWARD_NAME) == ("batch", "mmr1")
    inputs = [{"response": text, "response_length": 3, "ground_truth": "3"} for text in (RIGHT, WRONG, MUTE)]
    assert module.easyr1_reward(inputs) == [
        flags("overall", 1.0),
        flags("overall", 0.0),
        flags("overall", 0.0, invalid=1.0),
    ]
    assert module.easyr1_reward(inputs, task="raises", failed_score=0.0) == [flags("overall", 0.0, failed=1.0)] * 3
    with pytest.raises(RewardUnavailable):
        module.easyr1_reward(inputs, task="raises")


CONVERSATION = [[{"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}]]
COLUMNS: dict[str, Any] = {"completion_ids": [[1]], "trainer_state": object(), "image": [object()], "log_extra": print}


@pytest.mark.parametrize(
    ("options", "completions", "solutions", "rewards"),
    [
        ({}, [RIGHT, WRONG, MUTE], ["3", 3, "3"], [1.0, 0.0, 0.0]),
        ({}, CONVERSATION, ["3"], [1.0]),
        ({}, [RIGHT], [{"task": "raises"}], [None]),
        ({}, [RIGHT, RIGHT, RIGHT], [3, {"task": "hangs"}, {"task": "no_such"}], [1.0, None, None]),
        ({"task": "format"}, [RIGHT, "3"], [None, None], [1.0, 0.0]),
        ({"params": {"score": "graded"}}, [WRONG], [3], [pytest.approx(2 / 3)]),
        ({"solution": "truth"}, [RIGHT], None, [1.0]),
        ({"url": "http://127.0.0.1:1", "deadline_seconds": 0.2}, [RIGHT, RIGHT], [3, 3], [None, None]),
        ({}, [], [], []),
    ],
)
async def test_trl(options: dict[str, Any], completions: Any, solutions: Any, rewards: list[Any]) -> None:
    told: dict[str, float] = {}
    columns = COLUMNS | ({"truth": ["3"]} if solutions is None else {"solution": solutions})
    asked = {"prompts": ["?"] * len(completions), "completions": completions, "log_metric": told.__setitem__, **columns}
    reward = adapters.trl_reward(**options)
    assert await asyncio.to_thread(lambda: reward(**asked)) == rewards
    assert await adapters.trl_reward_async(**options)(**asked) == rewards
    name = f"mmr1_{options.get('task', 'reward')}"
    assert reward.__name__ == name
    if rewards:
        assert told[f"{name}/failed"] == rewards.count(None) / len(rewards)
        assert told[f"{name}/invalid_output"] == (MUTE in completions) / len(rewards)


async def test_a_large_batch_is_sent_in_parts() -> None:
    completions = [RIGHT if place % 2 else WRONG for place in range(600)]
    asked = {"prompts": [""] * 600, "completions": completions, "solution": ["3"] * 600}
    expected = [float(place % 2) for place in range(600)]
    assert await adapters.trl_reward_async()(**asked) == expected
    assert await asyncio.to_thread(lambda: adapters.trl_reward()(**asked)) == expected


def test_failures_are_logged_since_trainers_have_no_place_for_them(caplog: pytest.LogCaptureFixture) -> None:
    adapters.trl_reward()(prompts=["", ""], completions=[RIGHT, RIGHT], solution=[3, "a few"])
    assert "1 of 2 samples have no reward; the first: verifier_error: solution for task counting" in caplog.text


def test_swift(monkeypatch: pytest.MonkeyPatch) -> None:
    class ORM:
        def __init__(self, args: Any = None, **kwargs: Any) -> None:
            self.args = args

    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", types.SimpleNamespace(ORM=ORM))
    reward = adapters.swift_orm(task="counting")(args="all")
    assert isinstance(reward, ORM) and reward.args == "all"
    columns = {"messages": [[], [], []], "trainer_state": None, "solution": ["3", "4", "a few"]}
    assert reward([RIGHT, RIGHT, RIGHT], **columns) == [1.0, 0.0, None]


def test_areal_in_its_pool_of_processes(url: str) -> None:
    reward = adapters.areal_reward(url=url, task="counting")
    assert pickle.loads(pickle.dumps(reward)) == reward
    # The client exists here already, and a process forked from this one must not use it.
    assert reward("?", RIGHT, [1], [2], answer="3", image=None) == 1.0
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(reward, "?", WRONG, [1], [2], answer="3").result(20) == 0.0
        failing = pool.submit(
            adapters.areal_reward(url=url, task="raises"), prompt="?", completions=RIGHT, solution="3"
        )
        with pytest.raises(RewardUnavailable, match="scorer of raises failed"):
            failing.result(20)


def test_no_column_of_a_row_redirects_areals_call(url: str) -> None:
    reward = adapters.areal_reward(url=url, task="counting", params={"score": "graded"}, deadline_seconds=5)
    columns = {"url": "http://127.0.0.1:1", "task": "ocr", "params": {"no": 1}, "deadline_seconds": 0.01, "self": 1}
    assert reward("?", WRONG, [1], [2], answer="3", **columns) == pytest.approx(2 / 3)


def test_skyrl(monkeypatch: pytest.MonkeyPatch) -> None:
    class BaseTextEnv:
        def __init__(self) -> None:
            self.turns = 0

    module = types.SimpleNamespace(BaseTextEnv=BaseTextEnv, BaseTextEnvStepOutput=dict)
    for name in ("skyrl_gym", "skyrl_gym.envs", "skyrl_gym.envs.base_text_env"):
        monkeypatch.setitem(sys.modules, name, module)
    environment = adapters.skyrl_environment(task="counting")
    row = {"reward_spec": {"ground_truth": "3"}, "data_source": "a"}
    assert environment({}, row).step(WRONG) == {
        "observations": [],
        "reward": 0.0,
        "done": True,
        "metadata": {
            "outcome": "ok",
            "detail": "read 4, expected 3",
            "exact": 0.0,
            "graded": pytest.approx(2 / 3),
        },
    }
    with pytest.raises(RewardUnavailable):
        environment({}, {"reward_spec": {"ground_truth": "a few"}}).step(RIGHT)
    for other in ({}, {"reward_spec": None}):
        with pytest.raises(ValueError, match="ground_truth"):
            environment({}, other)


class EnvironmentReturn(NamedTuple):
    observations: Any
    metadata: Any
    next_stop_strings: Any
    rewards: Any
    terminateds: Any
    answers: Any


def test_nemo_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = types.SimpleNamespace(EnvironmentInterface=object, EnvironmentReturn=EnvironmentReturn)
    for name in ("nemo_rl", "nemo_rl.environments", "nemo_rl.environments.interfaces"):
        monkeypatch.setitem(sys.modules, name, interfaces)
    torch = types.SimpleNamespace(tensor=lambda values, dtype: values, float32="float32", ones=lambda n: [1.0] * n)
    monkeypatch.setitem(sys.modules, "torch", torch)
    environment = adapters.nemo_rl_environment()({"task": "counting"})
    logs = [[{"role": "user", "content": "3"}, {"role": "assistant", "content": text}] for text in (RIGHT, WRONG)]
    returned = environment.step(logs, [{"ground_truth": "3"}, {"ground_truth": 3}])
    assert returned == EnvironmentReturn(
        observations=[{"role": "environment", "content": ""}] * 2,
        metadata=[{"ground_truth": "3"}, {"ground_truth": 3}],
        next_stop_strings=[None, None],
        rewards=[1.0, 0.0],
        terminateds=[1.0, 1.0],
        answers=None,
    )
    with pytest.raises(RewardUnavailable):
        environment.step(logs[:1], [{"ground_truth": "a few"}])
    # Without the image's size, boxes of two spaces cannot be compared.
    grounding = adapters.nemo_rl_environment()({"task": "grounding", "params": {"response_space": "normalized_1"}})
    boxed = [[{"role": "assistant", "content": "[0.1, 0.1, 0.2, 0.2]"}]]
    truth = {"ground_truth": [10, 20, 20, 40]}
    assert grounding.step(boxed, [{**truth, "image_size": [100, 200]}]).rewards == [pytest.approx(1.0)]
    with pytest.raises(RewardUnavailable, match="image_size"):
        grounding.step(boxed, [truth])
    lenient = adapters.nemo_rl_environment()({"task": "counting", "failed_score": 0})
    assert lenient.step(logs[:1], [None]).rewards == [0.0]


async def test_verifiers() -> None:
    reward = adapters.verifiers_reward(task="counting")
    assert reward.__name__ == "mmr1_counting"
    state: dict[str, Any] = {}
    assert await reward(completion=[{"role": "assistant", "content": RIGHT}], answer="3", state=state) == 1.0
    assert state == {}
    with pytest.raises(RewardUnavailable):
        await reward(completion=RIGHT, answer="a few", state=state)
    assert isinstance(state["error"], RewardUnavailable)  # the rubric itself would count 0
    assert await adapters.verifiers_task_reward(WRONG, "3", task="ocr") == 0.25


def test_what_is_not_configured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMR1_REWARD_TASK")
    with pytest.raises(ValueError, match="set MMR1_REWARD_TASK, pass task=, or name it in the label"):
        adapters.verl_reward(solution_str=RIGHT, ground_truth="3")
    monkeypatch.delenv("MMR1_REWARD_URL")
    with pytest.raises(ValueError, match="set MMR1_REWARD_URL"):
        adapters.verl_reward(solution_str=RIGHT, ground_truth="3")


WRONG_LABELS: list[tuple[Any, str]] = [
    ({"task": "ocr", "param": 1}, "label: unknown key 'param'"),
    ({"task": "ocr", "text": "3", "image_size": [0, 1]}, "image_size"),
    (b"3", "cannot be sent as JSON: a bytes"),
    ({"task": "ocr", "text": [10**5000]}, "cannot be sent as JSON: an integer of 16610 bits"),
    ({"task": "ocr", "text": "3", "params": {"half of a pair": "\ud800"}}, "params"),
]


@pytest.mark.parametrize(("label", "reason"), WRONG_LABELS)
async def test_a_wrong_label_is_its_own_samples_failure(label: Any, reason: str) -> None:
    with pytest.raises(RewardUnavailable, match=f"^verifier_error: .*{reason}"):
        adapters.verl_reward(solution_str=RIGHT, ground_truth=label)
    assert adapters.verl_reward(solution_str=RIGHT, ground_truth=label, failed_score=0.5)["reward_failed"] == 1.0
    asked = {"prompts": [""] * 3, "completions": [RIGHT, RIGHT, WRONG], "solution": ["3", label, "3"]}
    assert await asyncio.to_thread(lambda: adapters.trl_reward()(**asked)) == [1.0, None, 0.0]
    assert await adapters.trl_reward_async()(**asked) == [1.0, None, 0.0]


def test_halves_of_surrogate_pairs_cost_no_other_sample() -> None:
    texts = ["\ud83d\ude00", "\ud800", "\udfff\ud800", "a"]
    asked = {"completions": texts, "solution": [{"task": "ocr", "text": text} for text in texts]}
    assert adapters.trl_reward()(prompts=[""] * 4, **asked) == [1.0] * 4
    assert adapters.trl_reward()(prompts=[""], completions=["😀"], solution=asked["solution"][:1]) == [1.0]


BOX, TRUTH = "[0.1, 0.1, 0.2, 0.2]", [10, 20, 20, 40]
BOXES: dict[str, Any] = {"task": "grounding", "params": {"response_space": "normalized_1"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"ground_truth": {"solution": TRUTH, "image_size": [100, 200]}},
        {"ground_truth": json.dumps({"task": "grounding", "solution": TRUTH, "image_size": [100, 200]})},
        {"ground_truth": TRUTH, "image_size": (100, 200)},
    ],
)
def test_easyr1_is_told_the_images_size(fields: dict[str, Any]) -> None:
    asked = {"response": BOX, "response_length": 3}
    assert adapters.easyr1_reward([asked | fields], **BOXES) == [flags("overall", pytest.approx(1.0))]
    with pytest.raises(RewardUnavailable, match="image_size"):
        adapters.easyr1_reward([asked | {"ground_truth": TRUTH}], **BOXES)


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        (TRUTH, {"info": {"image_size": [100, 200]}}),
        (TRUTH, {"info": {}, "image_size": [100, 200]}),
        ({"solution": TRUTH, "image_size": [100, 200]}, {"info": "{}"}),
    ],
)
async def test_verifiers_is_told_the_images_size(answer: Any, fields: dict[str, Any]) -> None:
    # As Rubric calls it: with those of the row's columns that the function names.
    reward = adapters.verifiers_reward(**BOXES)
    assert set(fields) <= set(inspect.signature(reward).parameters)
    state: dict[str, Any] = {}
    assert await reward(completion=BOX, answer=answer, state=state, **fields) == pytest.approx(1.0)
    assert await adapters.verifiers_task_reward(BOX, TRUTH, image_size=(100, 200), **BOXES) == pytest.approx(1.0)
    with pytest.raises(RewardUnavailable, match="image_size"):
        await adapters.verifiers_task_reward(BOX, TRUTH, **BOXES)


async def test_what_is_not_configured_is_no_zero_of_a_rubric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMR1_REWARD_URL")
    state: dict[str, Any] = {}
    with pytest.raises(ValueError, match="MMR1_REWARD_URL"):
        await adapters.verifiers_reward(task="counting")(completion=RIGHT, answer="3", state=state)
    assert isinstance(state["error"], ValueError)


def test_areals_label_is_the_first_that_is_there() -> None:
    columns = {"solution": None, "answer": "3", "label": "4"}  # merged datasets have the columns of all
    assert adapters.areal_reward(task="counting")("?", RIGHT, [1], [2], **columns) == 1.0


def test_loops_that_are_closed_keep_no_client() -> None:
    for _ in range(5):
        asyncio.run(adapters.verl_reward_async(solution_str=RIGHT, ground_truth="3"))
    assert sum(loop.is_closed() for loop, _ in calls._async_clients) <= 1


def test_threads_with_loops_of_their_own() -> None:
    asked = {"prompts": [""] * 9, "completions": [RIGHT, WRONG, RIGHT] * 3, "solution": ["3"] * 9}
    reward = adapters.trl_reward_async()

    def ask(_: int) -> list[float | None]:
        return asyncio.run(reward(**asked))  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [[1.0, 0.0, 1.0] * 3] * 24


async def test_the_key_is_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = peer_tasks()
    monkeypatch.setenv("MMR1_REWARD_API_KEY", "a-secret-key\n")  # the server takes it without its newline too
    app = create_app(Settings(), tasks, InProcessScoring(tasks))
    asked: dict[str, Any] = {"solution_str": RIGHT, "ground_truth": "3"}
    with live(app) as locked:
        assert (await adapters.verl_reward_async(**asked, url=locked))["score"] == 1.0
        monkeypatch.setenv("MMR1_REWARD_API_KEY", "another-key")  # it may change, and a client of the old one is no use
        with pytest.raises(RewardUnavailable, match="401"):
            await adapters.verl_reward_async(**asked, url=locked)


def test_labels_of_data_frames_become_json() -> None:
    import numpy as np

    label = {"boxes": np.array([[1.5, 2.0]], dtype=np.float32), "n": np.int64(3), "t": (np.bool_(True), None)}
    assert calls.plain(label) == {"boxes": [[1.5, 2.0]], "n": 3, "t": [True, None]}
    assert calls.plain(np.array(["a", None], dtype=object)) == ["a", None]
    assert math.isnan(calls.plain(float("nan")))
    for wrong in (b"3", object()):
        with pytest.raises(ValueError, match="cannot be sent as JSON"):
            calls.plain([wrong])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper"):
        calls.plain(endless)
