"""format: is the response laid out as asked? It does not read the answer, and leaves patterns to RE2."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from ..api import Example, Item, Outcome, Result
from ..patterns import MAX_PATTERN_CHARS, BadPattern, Pattern
from ..registry import Params, Sample, Task, Verdict

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class FormatParams(Params):
    style: Literal["answer", "think_answer", "pattern"] = Field(
        "answer",
        description="answer: reasoning in <think> may come first; think_answer: it must; pattern: `pattern` says",
    )
    pattern: str | None = Field(
        None,
        max_length=MAX_PATTERN_CHARS,
        description="of style pattern: what the whole response must match, in RE2's syntax; (?s) lets . match newlines",
    )

    @model_validator(mode="after")
    def _pattern_goes_with_its_style(self) -> Self:
        if (self.style == "pattern") != (self.pattern is not None):
            raise ValueError("style 'pattern' and a pattern go together")
        if self.pattern is not None:
            try:
                Pattern(self.pattern)
            except BadPattern as error:
                raise ValueError(f"pattern: {error}") from None
        return self


def find_fault(response: str, *, think_required: bool) -> str | None:
    """What is wrong with the layout, in words; None when nothing is."""
    text = response.strip()
    for tag in _TAGS:
        if text.count(tag) > 1:
            return f"{tag} occurs {text.count(tag)} times"
    if text.startswith("<think>"):
        thought, closed, text = text.removeprefix("<think>").partition("</think>")
        if not closed:
            return "<think> is never closed"
        if "<answer>" in thought or "</answer>" in thought:
            return "an answer tag stands within <think>...</think>"
        text = text.lstrip()
    elif think_required:
        return "the response does not begin with <think>"
    if "<think>" in text or "</think>" in text:
        return "a think tag stands where none belongs"
    if not text.startswith("<answer>"):
        return "text stands before <answer>" if "<answer>" in text else "<answer> is missing"
    inside, closed, after = text.removeprefix("<answer>").partition("</answer>")
    if not closed:
        return "<answer> is never closed"
    if after:
        return "text stands after </answer>"
    return None if inside.strip() else "the answer is empty"


def score(sample: Sample[Any, FormatParams]) -> Verdict:
    if sample.params.pattern is not None:
        fault = None if Pattern(sample.params.pattern).matches(sample.response) else "the pattern does not match"
    else:
        fault = find_fault(sample.response, think_required=sample.params.style == "think_answer")
    reward = 0.0 if fault else 1.0
    return Verdict(reward, {"format": reward}, {"well_formed": fault is None}, fault or "laid out as asked")


FORMAT = Task(
    name="format",
    summary="The response is one <answer>...</answer>, not empty, after at most one <think>...</think>; or all of it "
    "matches a pattern.",
    formula="1 if the layout is the one that `style` names, else 0. The solution is not looked at.",
    floor=0.0,
    solution=TypeAdapter(Any),
    params=FormatParams,
    score=score,
    example=Example(
        item=Item(id="1", task="format", response="I see <answer>3</answer>", solution=None, image_size=None),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.0,
            components={"format": 0.0},
            parsed={"well_formed": False},
            detail="text stands before <answer>",
        ),
    ),
)
