"""Reading a model's text: the answer within its tags, the numbers within the answer. Linear time, never an exception.

It decides nothing about rewards. No eval, no literal_eval, no regular expression that can backtrack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Longer runs of digits are not counts of anything, and would leave the integers that a float holds exactly.
MAX_DIGITS = 15

_UP_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_WORDS = {word: value for value, word in enumerate((*_UP_TO_TEN, *_TEENS, "twenty"))}
# These make a longer number of their neighbour, so that "twenty-one" is not read as twenty, nor "two hundred" as two.
_LARGER_WORDS = frozenset(
    ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million", "billion")
)

# Full-width digits and signs, the minus sign, and the spaces that typography puts between thousands.
_TO_ASCII = str.maketrans("０１２３４５６７８９，．－−＿\u00a0\u202f\u2009", "0123456789,.--____")  # noqa: RUF001
# Digits with what may stand between them. The class holds both, so there is one way to match and nothing to retry.
_DIGIT_RUN = re.compile(r"[0-9][0-9,_.]*")
_LETTER_RUN = re.compile(r"[a-z]+")
# A brace, one that LaTeX prints, or one that \boxed opens.
_BRACE = re.compile(r"\\boxed\s?\{|\\.|[{}]")


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of a response that answers. `tagged`: it stood within <answer>...</answer>."""

    text: str
    tagged: bool


def find_answer(response: str) -> Answer:
    """The text of the last complete <answer>...</answer>; without one, what follows the reasoning, or else everything.

    Reasoning that was never closed answers nothing: the text is then empty.
    """
    end = response.rfind("</answer>")
    begin = response.rfind("<answer>", 0, max(end, 0))
    if begin >= 0:
        return Answer(response[begin + len("<answer>") : end], True)
    thought_end = response.rfind("</think>")
    if thought_end >= 0:
        return Answer(response[thought_end + len("</think>") :], False)
    return Answer("" if "<think>" in response else response, False)


def find_boxed(text: str) -> str | None:
    """What stands in the last complete \\boxed{...}, the outermost if they are nested; None when there is none."""
    boxed: str | None = None
    open_braces: list[int | None] = []  # where the content of a \\boxed begins; None for other braces
    for match in _BRACE.finditer(text):
        brace = match.group()
        if brace == "}":
            begin = open_braces.pop() if open_braces else None
            if begin is not None:
                boxed = text[begin : match.start()]
        elif brace.endswith("{") and brace != "\\{":
            open_braces.append(None if brace == "{" else match.end())
    return boxed


def find_numbers(text: str, *, prose: bool = False) -> list[float]:
    """All numbers of a text in order: 3, -3, 3.5, .5, 1,234, full-width digits; without digits, words up to twenty.

    Numbers of more than MAX_DIGITS digits, and words for numbers above twenty, are left out. `prose`: so is the word
    "one" beside other numbers in words, as in "there are three dogs, and this one is brown".
    """
    text = text.translate(_TO_ASCII)
    numbers, any_digits = _in_digits(text)
    if any_digits:
        return numbers
    numbers = _in_words(text)
    return ([number for number in numbers if number != 1] if prose else []) or numbers


def read_number(text: str) -> float | None:
    """The number that a whole text is, spaces around it aside; None when the text is anything else or more."""
    text = text.strip().translate(_TO_ASCII)
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits[:1] == "." and digits[1:2].isdigit():
        digits = "0" + digits
    match = _DIGIT_RUN.fullmatch(digits)
    if match:
        numbers = _split_run(digits)
        if len(numbers) == 1 and numbers[0] is not None:
            return -numbers[0] if text[0] == "-" else numbers[0]
        return None
    value = _WORDS.get(text.lower())
    return None if value is None else float(value)


def _in_digits(text: str) -> tuple[list[float], bool]:
    """(The numbers written in digits, whether there were any digits at all.)"""
    numbers: list[float] = []
    any_digits = False
    for match in _DIGIT_RUN.finditer(text):
        any_digits = True
        begin, run = match.start(), match.group()
        # ".5" is a half; the point of "No.5" and the dots of "...5" end what stands before.
        if text[begin - 1 : begin] == "." and run.rstrip(",._").isdigit():
            before = text[begin - 2 : begin - 1] if begin > 1 else ""
            if not before.isalnum() and before != ".":
                begin, run = begin - 1, f"0.{run}"
        # A minus belongs to the number unless it joins it to what stands before: "2-3", "item-3".
        negative = begin > 0 and text[begin - 1] == "-" and not (begin > 1 and text[begin - 2].isalnum())
        for place, value in enumerate(_split_run(run)):
            if value is not None:
                numbers.append(-value if negative and place == 0 else value)
    return numbers, any_digits


def _split_run(run: str) -> list[float | None]:
    """The numbers in a run of digits, commas, underscores and points; None for one that is too long to read."""
    run = run.rstrip(",._")
    whole, point, fraction = run.partition(".")
    if "," not in fraction and "_" not in fraction and "." not in fraction:
        joined = _join_thousands(whole)
        if joined is not None:
            return [_to_float(joined, fraction if point else "")]
    # Not one number (1,2,3 or 1.2.3): each run of digits is a number of its own.
    return [_to_float(part, "") for part in re.split(r"[,._]", run) if part]


def _join_thousands(whole: str) -> str | None:
    """1,234,567 -> 1234567; plain digits as they are; None when the separators are not those of thousands."""
    separator = "," if "," in whole else "_"
    head, *groups = whole.split(separator)
    if not groups:
        return head
    grouped = 1 <= len(head) <= 3 and all(len(group) == 3 and group.isdigit() for group in groups)
    return head + "".join(groups) if grouped and head.isdigit() else None


def _to_float(whole: str, fraction: str) -> float | None:
    if len(whole) + len(fraction) > MAX_DIGITS:
        return None
    return float(f"{whole}.{fraction or '0'}")


def _in_words(text: str) -> list[float]:
    """Numbers in words, each standing alone: joined by a space, a hyphen or an 'and' they make up something larger."""
    numbers: list[float] = []
    run: list[str] = []
    run_end = 0
    lowered = text.lower()
    for match in _LETTER_RUN.finditer(lowered):
        word = match.group()
        if word not in _WORDS and word not in _LARGER_WORDS:
            continue
        between = lowered[run_end : min(match.start(), run_end + 8)]
        if run and not between.replace("and", "", 1).strip(" -_\t\n"):
            run.append(word)
        else:
            numbers.extend(_run_value(run))
            run = [word]
        run_end = match.end()
    numbers.extend(_run_value(run))
    return numbers


def _run_value(run: list[str]) -> list[float]:
    return [float(_WORDS[run[0]])] if len(run) == 1 and run[0] in _WORDS else []
