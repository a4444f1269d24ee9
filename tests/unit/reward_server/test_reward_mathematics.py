"""Mathematics in the midst of a response: what is bounded is what is read, and what takes long ends in time."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from typing import Any

import pytest

from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.arithmetic import MAX_DEPTH, Unreadable, read_arithmetic
from mmr1_reward_server.deadlines import OutOfTime, within_processor_time
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()
SLOW = "$" + ",".join(f"x_{number}" for number in range(100)) + "$"


def score(response: str, solution: Any = "4") -> Result:
    item = Item(id="1", task="accuracy", response=response, solution=solution)
    return score_item(TASKS, item, max_response_chars=200_000)


@pytest.mark.parametrize(
    "response",
    [
        "The result:\n--------\n$4$",
        "<think>x</think>\n----------\nThe answer is $4$.",
        "| a | b |\n|---|---|\n| 1 | 2 |\n4",
        "-------------\n4",
        ", ".join(f"|A{letter}|" for letter in "BCDEFGHIJK") + ", then $4$",
        "\n".join(f"({letter}) 3," for letter in "abcdefghijklmnopqrstuvwxyz") + "\n$4$",
        "I look at it. " * 50 + "The answer is $4$",
        "I look at it. " * 10_000 + "The answer is $4$",
        "I look at it.\n" * 10_000 + "The answer is 2 + 2",
    ],
)
def test_prose_tables_and_lists_are_not_limited(response: str) -> None:
    assert (score(response).outcome, score(response).reward) == (Outcome.OK, 1)


@pytest.mark.parametrize(
    "response",
    [
        "<answer>$))))))))))))$ $" + 20 * "(" + "1" + 20 * ")" + "$</answer>",
        "so it is $" + "+" * 9 + "4$",
        "so it is $" + "+".join(["|x|"] * 9) + "$",
        "so it is $" + "+".join("1" * 251) + "$",
        "so it is 9**9**9",
        SLOW,
    ],
)
def test_what_is_read_is_limited(response: str) -> None:
    score("$1$")
    began = time.process_time()
    result = score(response)
    assert (result.outcome, result.reward) == (Outcome.INVALID_OUTPUT, 0)
    assert result.detail.startswith("the answer cannot be compared: ")
    assert time.process_time() - began < 4
    assert score("$4$").reward == 1


def test_a_truth_that_takes_long_is_not_the_models_fault() -> None:
    assert score("$4$", SLOW).outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("response", ["9**9**9", "so 2*(3-1)", "2^2", "-4 + 8"])
def test_no_eval_sees_a_models_text(response: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from math_verify import parser

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(parser, "parse_expr", refuse)
    assert score(response).reward == (0 if response == "9**9**9" else 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2", 0.5),
        ("2 * (3 - 1)", 4),
        ("2^3^2", 512),
        ("-2**2", -4),
        ("2**-1", 0.5),
        ("8 / 4 / 2", 1),
        ("7 - 2 - 1", 4),
        (".5 + 1.", 1.5),
        ("+-+3", -3),
        ("((5))", 5),
    ],
)
def test_arithmetic(text: str, value: float) -> None:
    assert float(read_arithmetic(text)) == value


@pytest.mark.parametrize(
    "text", ["", "1 +", "(1", "1)", "1 2", "(2)(3)", "7//2", "007", "x", "()", "(" * (MAX_DEPTH + 1)]
)
def test_what_is_no_arithmetic(text: str) -> None:
    with pytest.raises(Unreadable):
        read_arithmetic(text)


def _busy(seconds: float) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        try:
            time.sleep(0)
        except Exception:  # as SymPy handles everything
            return "handled"
    return "done"


def test_other_threads_of_the_process_take_nothing_from_a_computation() -> None:
    """Compiled code beside us keeps the processor busy, as the process's own timer sees it."""
    stop = threading.Event()

    def hash_on() -> None:
        while not stop.is_set():
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 200_000)  # without the interpreter's lock

    others = [threading.Thread(target=hash_on) for _ in range(3)]
    for other in others:
        other.start()
    try:
        began = time.process_time()
        assert within_processor_time(0.4, lambda: _busy(0.3)) == "done"
        assert time.process_time() - began > 0.4, "the others were not busy, so nothing was shown"
        with pytest.raises(OutOfTime):
            within_processor_time(0.1, lambda: _busy(10))
    finally:
        stop.set()
        for other in others:
            other.join()


def test_a_computation_ends_by_its_processor_time() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(OutOfTime):
        within_processor_time(0.1, lambda: _busy(10))
    assert within_processor_time(5, lambda: _busy(0.05)) == "done"
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    with pytest.raises(KeyError):
        within_processor_time(5, lambda: {}["x"])


def test_off_the_main_thread_nothing_is_ended() -> None:
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(within_processor_time(0.05, lambda: _busy(0.2))))
    thread.start()
    thread.join()
    assert ends == ["done"]


@pytest.mark.parametrize(
    "text", ["1/2 -7 -7", "1 + 2 + 3", "2*(3*4)", "(1 + 2) + 3 - (4 - 5)", "1 + +(2 + 3)", "8/2/2*3"]
)
def test_sums_and_products_are_taken_together_as_sympy_takes_them(text: str) -> None:
    sympy = pytest.importorskip("sympy")
    assert sympy.srepr(read_arithmetic(text)) == sympy.srepr(sympy.parse_expr(text, evaluate=False))
