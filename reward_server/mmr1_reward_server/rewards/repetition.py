"""repetition: how much of the response says the same again? It neither reads the answer nor knows what is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, TypeAdapter

from ..api import Example, Item, Outcome, Result
from ..registry import Params, Sample, Task, Verdict
from ..text import Tokens, tokenise


class RepetitionParams(Params):
    n: int = Field(3, ge=1, le=40, description="tokens in a row that make up one n-gram")
    max_penalty: float = Field(1.0, gt=0, le=1, description="what a response that only repeats itself would lose")
    tokens: Tokens = Field(
        "auto", description="an n-gram is of words, of characters, or of characters where a script has no spaces"
    )


def repeated_share(tokens: Sequence[str], n: int) -> float:
    """1 - distinct n-grams / all n-grams, from 0 to 1 (exclusive); 0 when there is no n-gram."""
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*(tokens[start : start + total] for start in range(n)), strict=True)))
    return 1.0 - distinct / total


def score(sample: Sample[Any, RepetitionParams]) -> Verdict:
    params = sample.params
    tokens = tokenise(sample.response.casefold(), params.tokens)
    share = repeated_share(tokens, params.n)
    # 0.0 - 0.0 is 0.0, where a minus sign would make it -0.0.
    reward = 0.0 - params.max_penalty * share
    grams = max(0, len(tokens) - params.n + 1)
    return Verdict(
        reward, {"repeated_share": share}, {"ngrams": grams}, f"{share:.4g} of {grams} n-grams repeat others"
    )


REPETITION = Task(
    name="repetition",
    summary="The share of n-grams of the whole response that repeat an earlier one, in any case of its letters, as a "
    "penalty. The solution is not looked at.",
    formula="-max_penalty * (1 - distinct n-grams / all n-grams); 0 for fewer than n tokens (arXiv 2502.03373; VLM-R1 "
    "with n = 6). The floor is -max_penalty.",
    floor=-1.0,
    floor_for=lambda params: -params.max_penalty,
    solution=TypeAdapter(Any),
    params=RepetitionParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="repetition",
            response="a red dog, a red dog, a red dog,",
            solution=None,
            params={"n": 3, "max_penalty": 0.7},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.0 - 0.7 * (1 - 3 / 7),
            components={"repeated_share": 1 - 3 / 7},
            parsed={"ngrams": 7},
            detail="0.5714 of 7 n-grams repeat others",
        ),
    ),
)
