"""Rewards from outside: what a plain function becomes, and what is refused when the server starts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.plugins import PluginError, build_registry, reward, to_task
from mmr1_reward_server.registry import InvalidOutput, Registry, Verdict
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item


def ask(plugin: Callable[..., Any], solution: Any = None, **params: Any) -> Result:
    task = to_task(plugin, "test")
    item = Item(id="1", task=task.name, response="abc", solution=solution, params=params, image_size=(4, 3))
    return score_item(Registry([task]), item, max_response_chars=100)


def nearness(response: str, solution: int, *, scale: float = 1.0, image_size: tuple[int, int] | None = None) -> float:
    """How near the length is to the solution.

    More that nobody needs to see in a list.
    """
    assert image_size == (4, 3)
    return scale * len(response) / solution


def test_a_plain_function_is_a_task() -> None:
    info = to_task(nearness, "test").info()
    assert (info.name, info.summary, info.floor) == ("nearness", "How near the length is to the solution.", 0.0)
    assert info.solution_schema == {"type": "integer"}
    assert list(info.params_schema["properties"]) == ["scale"]
    assert info.params_schema["additionalProperties"] is False
    assert info.example is None
    assert ask(nearness, 6, scale=4).reward == 2.0
    assert ask(nearness, 6).reward == 0.5


def test_its_params_and_solution_are_checked() -> None:
    assert ask(nearness, 6, scale="much").detail.startswith(
        "params of task nearness: scale: Input should be a valid number"
    )
    assert ask(nearness, 6, scael=1).detail == "params of task nearness: scael: Extra inputs are not permitted"
    assert ask(nearness, "six").detail.startswith("solution for task nearness: Input should be a valid integer")

    def demanding(response: str, solution: Any, *, needed: str) -> float:
        return 1.0

    assert ask(demanding).detail == "params of task demanding: needed: Field required"


def test_it_may_take_any_params() -> None:
    def open_to_all(response: str, solution: Any, known: int = 1, **params: Any) -> dict[str, Any]:
        return {"reward": known, **params}

    result = ask(open_to_all, other=2, more=3.5)
    assert (result.reward, result.components) == (1.0, {"other": 2.0, "more": 3.5})


class NumberLike:
    def __float__(self) -> float:
        return 0.25


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (1, Verdict(1.0)),
        (True, Verdict(1.0)),
        (NumberLike(), Verdict(0.25)),
        ({"reward": 0.5, "iou": 0.7}, Verdict(0.5, {"iou": 0.7})),
        ({"score": 0.5}, Verdict(0.5)),
        ({"reward": 0.5, "score": 0.1}, Verdict(0.5, {"score": 0.1})),
        ({"reward": 1, "parsed": [1, 2], "detail": "read 2 boxes"}, Verdict(1.0, {}, [1, 2], "read 2 boxes")),
        (Verdict(0.5, {"a": 1.0}), Verdict(0.5, {"a": 1.0})),
    ],
)
def test_what_it_may_return(answer: object, expected: Verdict) -> None:
    async def later(response: str, solution: Any) -> object:
        await asyncio.sleep(0)
        return answer

    for plugin in (lambda response, solution: answer, later):
        result = ask(plugin)
        assert result.outcome is Outcome.OK
        found = Verdict(result.reward or 0.0, result.components, result.parsed, result.detail)
        assert found == expected


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "returned NoneType where a number belongs"),
        ("1.0", "returned str where a number belongs"),
        ([1.0], "returned list where a number belongs"),
        ({"iou": 1.0}, "returned a dict without 'reward' or 'score'"),
        ({"reward": "1"}, "returned str where a number belongs"),
        ({"reward": 1, "iou": None}, "returned NoneType where a number belongs"),
        (float("nan"), "unusable verdict"),
    ],
)
def test_anything_else_is_its_own_failure(answer: object, problem: str) -> None:
    result = ask(lambda response, solution: answer)
    assert (result.outcome, result.reward) == (Outcome.VERIFIER_ERROR, None)
    assert problem in result.detail


def test_its_exceptions_are_its_own_failure_and_invalid_output_is_the_models() -> None:
    @reward(floor=-1.0)
    async def judge(response: str, solution: Any) -> float:
        if solution == "raise":
            raise KeyError("judge")
        raise InvalidOutput("nothing to judge")

    assert ask(judge, "raise").outcome is Outcome.VERIFIER_ERROR
    assert ask(judge, "raise").detail == "scorer of judge failed: KeyError: 'judge'"
    floored = ask(judge)
    assert (floored.outcome, floored.reward, floored.detail) == (Outcome.INVALID_OUTPUT, -1.0, "nothing to judge")


def test_an_async_function_keeps_its_loop() -> None:
    loops = []

    async def plugin(response: str, solution: Any) -> float:
        loops.append(asyncio.get_running_loop())
        return 1.0

    assert ask(plugin).reward == ask(plugin).reward == 1.0
    assert loops[0] is loops[1]


def test_what_it_declares_is_shown() -> None:
    @reward(name="other", floor=-2.0, formula="x / y", summary="A ratio.")
    def ratio(response: str, solution: Any) -> float:
        return 1.0

    info = to_task(ratio, "test", "entry_point").info()
    assert (info.name, info.floor, info.formula, info.summary) == ("other", -2.0, "x / y", "A ratio.")
    assert ratio("", None) == 1.0
    with pytest.raises(ValueError, match="floor"):
        reward(floor=float("nan"))


def only_response(response: str) -> float:
    return 0.0


def positional(response: str, solution: Any, third: int, /) -> float:
    return 0.0


def indescribable(response: str, solution: Registry) -> float:
    return 0.0


def unresolvable(response: str, solution: NoSuchType) -> float:  # type: ignore[name-defined]  # noqa: F821
    return 0.0


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("length", "not of the form module:function"),
        (":length", "not of the form module:function"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{__name__}:no_such", "cannot be imported: AttributeError"),
        (f"{__name__}:NOT_CALLABLE", "is a int, not a function or a Task"),
        (f"{__name__}:only_response", "it must take the response and the solution"),
        (f"{__name__}:positional", "its parameter third cannot be given by name"),
        (f"{__name__}:indescribable", "its parameters cannot be described"),
        (f"{__name__}:unresolvable", "its parameters cannot be described: name 'NoSuchType' is not defined"),
        ("mmr1_reward_server.rewards.counting:COUNTING", "this server already has a task called 'counting'"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(target: str, problem: str) -> None:
    with pytest.raises(PluginError) as caught:
        build_registry([target])
    assert str(caught.value).startswith(f"--reward {target}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an entry point, as pip leaves it behind."""
    (tmp_path / "angles.py").write_text("def score(response, solution): return 0.5\n")
    about = tmp_path / "angles-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: angles\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mmr1.rewards]\nangle = angles:score\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "angles", raising=False)
    return tmp_path


def test_installed_packages_are_found(package: Path) -> None:
    registry = build_registry([f"{__name__}:nearness"])
    assert [task.name for task in registry] == [*(task.name for task in builtin_tasks()), "angle", "nearness"]
    item = Item(id="1", task="angle", response="", solution=None)
    assert score_item(registry, item, max_response_chars=9).reward == 0.5


def test_a_broken_package_is_named(package: Path) -> None:
    (package / "angles.py").write_text("import no_such\n")
    with pytest.raises(PluginError, match="reward angle = angles:score of package angles cannot be imported"):
        build_registry()
