"""What has to hold for any input whatever: one function for each part of the reward server, from bytes to a check.

They raise AssertionError, or let through what was raised, when it does not. They know no fuzzer: a short run is among
the tests, and fuzz_reward.py searches longer.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError

from mmr1_reward_server import choices, labels, mathematics, parsing, patterns, text
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.box_parsing import read_regions
from mmr1_reward_server.json_values import has_more_values
from mmr1_reward_server.registry import InvalidOutput
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import Scored, scored_item, too_deep
from mmr1_reward_server.worker_wire import (
    FrameReader,
    decode_items,
    decode_scored,
    encode_item,
    encode_scored,
    join_items,
    to_frame,
)
from tests.fuzz.drawing import MAX_CHARS, Draw

# Of this thread's own processor time, so that a busy machine makes nothing late.
MAX_SECONDS = 1.0
# How much slower than itself the code runs: what measures its coverage makes it so, and sets this.
slowdown = 1.0
MATHEMATICS_SECONDS = 3.0

TASKS = builtin_tasks()
_SCHEMAS = {task.name: (task.solution.json_schema(), task.params.model_json_schema()) for task in TASKS}


class TooSlow(AssertionError):
    """One input took longer than any input may."""


@contextmanager
def bounded(what: str, seconds: float = MAX_SECONDS) -> Iterator[None]:
    began = time.thread_time()
    yield
    took = time.thread_time() - began
    if took > seconds * slowdown:
        raise TooSlow(f"{what} took {took:.1f} s")


def parsers(draw: Draw) -> None:
    """Whatever reads a model's or a dataset's text."""
    check = draw.one_of((_answers, _regions, _choices, _labels, _texts, _patterns, _values))
    draw.note("reader", check.__name__)
    with bounded(check.__name__):
        check(draw)


def _answers(draw: Draw) -> None:
    shown = draw.note("text", draw.text())
    assert parsing.find_answer(shown).text in shown
    boxed = parsing.find_boxed(shown)
    assert boxed is None or boxed in shown
    number = parsing.read_number(shown)
    for value in [*parsing.find_numbers(shown), *([] if number is None else [number])]:
        assert abs(value) < 10**parsing.MAX_DIGITS
    mathematics.looks_mathematical(shown)


def _regions(draw: Draw) -> None:
    shown = draw.note("text", draw.text())
    with suppress(InvalidOutput):
        reading = read_regions(shown, pairs=draw.one_of(("boxes", "points")))
        for region in reading.regions:
            assert len(region.coordinates) in (2, 4)
            assert all(math.isfinite(value) for value in (*region.coordinates, *region.centre, region.score or 0.0))
        json.dumps([region.as_json() for region in reading.regions], ensure_ascii=False, allow_nan=False).encode()
        assert not (reading.says_none and reading.regions)


def _choices(draw: Draw) -> None:
    options, shown = draw.one_of(("ABCD", "AB", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")), draw.note("text", draw.text())
    choice = choices.find_choice(shown, options)
    assert choice.fault if choice.letter is None else choice.letter in options
    for letter in (choices.read_letter(shown, options), choices.read_leading_letter(shown, options)):
        assert letter is None or letter in options


def _labels(draw: Draw) -> None:
    label = draw.note("label", draw.value())
    with suppress(labels.BadLabel):
        read = labels.read_label(label)
        assert isinstance(read.params, dict) and isinstance(read.task, str | None)


def _texts(draw: Draw) -> None:
    one, other = draw.note("text", draw.text()), draw.note("other", draw.text(2000))
    options: dict[str, Any] = {
        "whitespace": draw.one_of(("collapse", "keep", "remove")),
        "unicode": draw.one_of(("NFC", "NFKC", "none")),
        "case": draw.one_of(("keep", "ignore")),
        "punctuation": draw.one_of(("keep", "ignore")),
    }
    tokens: Any = draw.one_of(("auto", "words", "characters"))
    one, other = (text.normalise(text.strip_fence(each), **options) for each in (one, other))
    first, second = text.tokenise(one, tokens), text.tokenise(other, tokens)
    assert "".join(first) == "".join(one.split())
    assert 0 <= text.token_f1(first, second) <= 1 and text.token_f1(first, first) == 1
    assert 0 <= text.edit_similarity(first, second) <= 1 and text.edit_similarity(first, first) == 1
    assert text.error_rate(first, second) >= 0


def _patterns(draw: Draw) -> None:
    pattern, shown = draw.note("pattern", draw.text(1100)), draw.note("text", draw.text())
    with suppress(patterns.BadPattern):
        patterns.Pattern(pattern).matches(shown)


def _values(draw: Draw) -> None:
    value = draw.note("value", draw.value())
    written, number = json.dumps(value, ensure_ascii=draw.chance(2)).encode(), _num_values(value)
    assert has_more_values(written, number - 1) and not has_more_values(written, number)
    has_more_values(draw.note("text", draw.text()).encode(), draw.below(300))


def _num_values(value: Any) -> int:
    """As `has_more_values` counts."""
    if isinstance(value, list):
        return 1 + (sum(map(_num_values, value)) or 1)
    if isinstance(value, dict):
        return 1 + (sum(1 + _num_values(inner) for inner in value.values()) or 1)
    return 1


def tasks(draw: Draw) -> None:
    """One item's way: its check, the wire to a worker, its score, the wire back."""
    task = draw.one_of(list(TASKS))
    solution_schema, params_schema = _SCHEMAS[task.name]
    assert task.example is not None
    example = task.example.item
    asked = {
        "id": "1",
        "task": task.name,
        "solution": _nearly(draw, example.solution, solution_schema),
        "params": _nearly(draw, example.params, params_schema),
        "image_size": draw.one_of((example.image_size, (640, 480), None, (1, 1), (10**9, 1), draw.value(1))),
        "response": draw.text(MAX_CHARS + 1) if draw.chance(2) else draw.near(example.response),
    }
    draw.note("item", asked)
    try:
        item = Item.model_validate(asked)
    except ValidationError:
        return
    refused = too_deep(item)
    if refused is not None:
        assert refused.refused and Result.model_validate_json(refused.encoded) == refused.result
        return
    with bounded(task.name):
        (item,) = decode_items(join_items([encode_item(item)]))
        scored = scored_item(TASKS, item, max_response_chars=MAX_CHARS)
        (back,) = decode_scored(encode_scored([scored]))
    _check_verdict(item, scored)
    assert back == scored and back.refused == scored.refused


def _nearly(draw: Draw, example: Any, schema: dict[str, Any]) -> Any:
    """The example's, so that the response matters; or what the schema describes; or something like the example's."""
    kind = draw.below(6)
    return example if kind < 3 else draw.described(schema) if kind < 5 else draw.mutated(example)


def _check_verdict(item: Item, scored: Scored) -> None:
    result = scored.result
    assert Result.model_validate_json(scored.encoded) == result
    json.loads(scored.encoded)
    floor = TASKS.floor_of(item)
    assert math.isfinite(floor)
    if result.outcome is Outcome.OK:
        assert result.reward is not None and result.reward >= floor - 1e-9, f"{result.reward} is below {floor}"
    elif result.outcome is Outcome.INVALID_OUTPUT:
        assert result.reward == floor
    else:
        assert result.outcome is Outcome.VERIFIER_ERROR
        assert scored.refused, result.detail  # anything but a BadItem is a scorer that failed
    assert result.detail or result.outcome is Outcome.OK


def frames(draw: Draw) -> None:
    """The server's side of the wire, whatever a worker sends, in whatever pieces."""
    valid = [Scored(task.example.result, 0.5) for task in list(TASKS)[:3] if task.example is not None]
    items = [task.example.item for task in list(TASKS)[:3] if task.example is not None]
    payload = bytearray(
        draw.one_of((b"", encode_scored(valid), join_items(map(encode_item, items)), encode_scored(valid[:1])))
    )
    for _ in range(draw.below(6)):
        begin = draw.below(len(payload) + 1)
        payload[begin : begin + draw.below(9)] = draw.raw(12)
    sent = bytes(payload)
    draw.note("payload", sent)
    with bounded("decoding"):
        with suppress(ValueError):
            for one in decode_scored(sent):
                assert one.reward is None or math.isfinite(one.reward)
        with suppress(ValidationError):
            decode_items(sent)
        stream = to_frame(sent) + to_frame(b"") + to_frame(sent) + draw.raw(8)
        reader, read = FrameReader(), []
        while stream:
            size = 1 + draw.below(400)
            read += list(reader.feed(stream[:size]))
            stream = stream[size:]
        assert read[:3] == [sent, b"", sent]


class _Late(BaseException):
    """math-verify's own handlers let this through."""


def mathematics_of_texts(draw: Draw) -> None:
    """math-verify behind our limits: it may be slow, which a deadline ends, but nothing may keep the deadline out."""
    one, other = draw.note("text", draw.text(300)), draw.note("truth", draw.text(300))
    began = time.thread_time()
    try:
        with _deadline(MATHEMATICS_SECONDS):
            read, true = mathematics.read_expression(one, 1000), mathematics.read_expression(other, 1000)
            if read is not None and true is not None:
                mathematics.are_equal(read, true)
    except (_Late, mathematics.TooLarge):
        pass
    took = time.thread_time() - began
    if took > MATHEMATICS_SECONDS + 2.0:
        raise TooSlow(f"math-verify could not be interrupted for {took:.1f} s")


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises _Late in the main thread when that much processor time has passed."""

    def ring(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


Check = Callable[[Draw], None]
