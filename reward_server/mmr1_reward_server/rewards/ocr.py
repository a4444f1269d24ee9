"""ocr: is this the text? Compares what the response transcribed with the true text. Where on the image it stands is not
its business.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, TypeAdapter, WithJsonSchema

from ..api import Example, Item, Outcome, Result
from ..parsing import find_answer
from ..registry import BadItem, InvalidOutput, Params, Sample, Task, Verdict
from ..text import (
    Case,
    Fence,
    Punctuation,
    Tokens,
    Unicode,
    Whitespace,
    edit_distance,
    edit_similarity,
    error_rate,
    normalise,
    strip_fence,
    token_f1,
    tokenise,
)
from ..truths import number_as_text

# Two texts of this length take half a second, of Chinese two.
_MAX_SOLUTION_CHARS = 100_000
# Normalised, a text may be eighteen times as long as it was; no writing that is used is more than twice.
_MAX_NORMALISED_CHARS = 2 * _MAX_SOLUTION_CHARS
_MAX_SOLUTIONS = 64
# The time is the product of the lengths: of two Chinese texts of 100,000 characters two seconds, of words twice that.
_MAX_PRODUCT = _MAX_SOLUTION_CHARS**2


def _as_list(solution: object) -> object:
    """Numbers as they are written. Raises ValueError."""
    texts = [number_as_text(text) for text in (solution if isinstance(solution, list) else [solution])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a text or a list of texts")
    return texts


Text = Annotated[str, StringConstraints(strict=True, max_length=_MAX_SOLUTION_CHARS)]
_TEXT_SCHEMA = {"type": "string", "maxLength": _MAX_SOLUTION_CHARS}
Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=_MAX_SOLUTIONS),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT_SCHEMA,
                {"type": "number"},
                {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1, "maxItems": _MAX_SOLUTIONS},
            ]
        }
    ),
]


class OcrParams(Params):
    score: Literal["edit", "cer", "wer", "f1"] = Field("edit", description="which of the four components is the reward")
    whitespace: Whitespace = Field("collapse", description="collapse: every run is one space, none at the ends")
    unicode: Unicode = Field("NFC", description="the normalisation form; NFKC also makes full-width letters plain")
    case: Case = Field("keep", description="ignore: upper and lower case are the same")
    punctuation: Punctuation = Field("keep", description="ignore: it is deleted from both texts")
    tokens: Tokens = Field(
        "auto", description="what wer and f1 count: words, characters, or characters where a script has no spaces"
    )
    fence: Fence = Field("strip", description="strip: a code fence around a whole text is no part of it")


def read_text(response: str) -> str:
    """The transcription: in the last answer tags, else after the reasoning, else everything.

    An empty one is an answer ("there is no text"). Raises InvalidOutput when there is reasoning and nothing after it.
    """
    answer = find_answer(response)
    if not answer.tagged and not answer.text.strip() and response.strip():
        raise InvalidOutput("the response reasons, and gives no answer after it")
    return answer.text


def _compare(read: str, true: str, tokens: Tokens) -> dict[str, float]:
    read_tokens, true_tokens = tokenise(read, tokens), tokenise(true, tokens)
    # The distance is what takes the time: once for both measures of characters, and for tokens that are characters.
    distance = edit_distance(read, true)
    same = len(read_tokens) == len(read) and len(true_tokens) == len(true)
    return {
        "edit": edit_similarity(read, true, distance),
        "cer": max(0.0, 1.0 - error_rate(read, true, distance)),
        "wer": max(0.0, 1.0 - error_rate(read_tokens, true_tokens, distance if same else None)),
        "f1": token_f1(read_tokens, true_tokens),
    }


def _check_product(read: int, truths: list[int]) -> None:
    """Raises BadItem when even a right response would take too long, and InvalidOutput when this one does."""
    total = sum(truths)
    if total * max(truths) > _MAX_PRODUCT:
        raise BadItem(f"solution for task ocr: {total} characters, {max(truths)} in one text, take too long to compare")
    if total * read > _MAX_PRODUCT:
        raise InvalidOutput(f"{read} characters take too long to compare with {total}")


def score(sample: Sample[list[str], OcrParams]) -> Verdict:
    params = sample.params

    def normalised(text: str) -> str:
        return normalise(
            strip_fence(text) if params.fence == "strip" else text,
            whitespace=params.whitespace,
            unicode=params.unicode,
            case=params.case,
            punctuation=params.punctuation,
        )

    text = read_text(sample.response)
    read = normalised(text)
    if len(read) > max(_MAX_NORMALISED_CHARS, 2 * len(text)):
        raise InvalidOutput(f"the text has {len(read)} characters when it is normalised")
    truths = [normalised(true) for true in sample.solution]
    if max(map(len, truths)) > _MAX_NORMALISED_CHARS:
        raise BadItem(f"solution for task ocr: has {max(map(len, truths))} characters when it is normalised")
    _check_product(len(read), [len(true) for true in truths])
    compared = [_compare(read, true, params.tokens) for true in truths]
    best = max(range(len(compared)), key=lambda place: compared[place][params.score])
    components = compared[best]
    detail = f"{params.score} {components[params.score]:.4g} of {len(read)} characters read"
    if len(compared) > 1:
        detail += f", nearest to solution {best + 1} of {len(compared)}"
    # Half a surrogate pair can be compared, and not sent.
    shown = read.encode("utf-8", "replace").decode("utf-8")
    return Verdict(components[params.score], components, {"text": shown}, detail)


OCR = Task(
    name="ocr",
    summary="The text in the last <answer>...</answer>, after </think>, or else of the whole response, against the "
    "true text; of several acceptable texts the one that scores best counts.",
    formula="edit: 1 - Levenshtein distance / length of the longer text (MMR1, Perception-R1). "
    "cer: max(0, 1 - distance / length of the true text). wer: the same on tokens. "
    "f1: 2 * common tokens / tokens of both. All on normalised texts; both empty: 1; only the true one empty: 0. "
    "The read text's length times the length of all true ones is at most 10^10; beyond it is invalid_output.",
    floor=0.0,
    solution=TypeAdapter(Texts),
    params=OcrParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="ocr",
            response="<answer>hello\nword</answer>",
            solution="hello world!",
            params={"punctuation": "ignore"},
            image_size=None,
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=1 - 1 / 11,
            components={"edit": 1 - 1 / 11, "cer": 1 - 1 / 11, "wer": 0.5, "f1": 0.5},
            parsed={"text": "hello word"},
            detail="edit 0.9091 of 10 characters read",
        ),
    ),
)
