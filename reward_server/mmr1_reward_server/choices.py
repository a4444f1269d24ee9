"""Which option did a text choose? Finds the letter, however it is dressed. It knows no task and no truth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .parsing import find_boxed

# What may stand around a letter: brackets, emphasis, LaTeX, quotation marks.
_OPEN = r"[\s(\[{*_$\"'`]{0,8}(?:\\text\{|\\textbf\{|\\mathrm\{|\\mathbf\{)?[(\[{*]?"
_CLOSE = r"[\s)\]}*_$\"'`.:]{0,8}"
_WHOLE = re.compile(rf"{_OPEN}([A-Za-z]){_CLOSE}")
# "B. a cat", "(B) a cat", "**B**: a cat": a letter, at least one sign that ends it, and more.
_LEADING = re.compile(rf"{_OPEN}([A-Z])[*_$\"'`]{{0,2}}[.:)\]}}]")
# The same further on, where it would name a second option.
_LISTED = re.compile(r"(?<![^\s(\[*])([A-Z])[.:)\]]{1,3}(?=\s{0,4}\S)")
# A letter that such a word announces: the more telling words first.
_MARKERS = tuple(
    re.compile(
        rf"(?i:\b(?:{words})\b(?:\s{{1,4}}(?:is|would be|option|choice))?[\s:=*_]{{0,8}}(?:option\s)?)"
        rf"{_OPEN}([A-Za-z])(?![\w'-])(?P<after>\s{{0,4}}[^\W_])?"
    )
    for words in ("answer", "option|choice|choose")
)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_ALONE = re.compile(r"(?<![\w'-])([A-Z])(?![\w'-])(?P<after> (?!or\b|and\b)[^\W_])?")
# Alone before a word, these are words themselves: "A cat", "I see".
_WORDS = "AI"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a text chooses: one letter, or nothing, and then `fault` says why in words."""

    letter: str | None
    fault: str = ""


def read_letter(text: str, options: str) -> str | None:
    """The letter that a whole text is: B, b, (B), B., **B**, \\boxed{B}. None when it is more, or no option."""
    boxed = find_boxed(text)
    match = _WHOLE.fullmatch((text if boxed is None else boxed).strip())
    letter = match.group(1).upper() if match else None
    return letter if letter is not None and letter in options else None


def read_leading_letter(text: str, options: str) -> str | None:
    """The letter with a full stop, colon or bracket that begins a text: "B. a cat", "(B) a cat"."""
    match = _LEADING.match(text.strip())
    return match.group(1) if match and match.group(1) in options else None


def find_choice(text: str, options: str) -> Choice:
    """The option that a text chooses, by the first of these that it has:

    1. nothing but a letter; 2. a letter that leads it, as in "B. a cat"; 3. the last "answer is B", or else the last
    "option B"; 4. a letter in brackets; 5. a capital letter alone. In 2, 4 and 5 several options are none. Letters that
    are no option are not seen. Where there is a \\boxed, it is the text. Linear in the text.
    """
    boxed = find_boxed(text)
    text = text if boxed is None else boxed
    letter = read_letter(text, options)
    if letter is not None:
        return Choice(letter)
    letter = read_leading_letter(text, options)
    if letter is not None:
        return _only({letter} | (set(_LISTED.findall(text) + _BRACKETED.findall(text)) & set(options)))
    for marker in _MARKERS:
        marked = [match.group(1) for match in marker.finditer(text) if _announced(match)]
        marked = [letter.upper() for letter in marked if letter.upper() in options]
        if marked:
            return Choice(marked[-1])
    bracketed = set(_BRACKETED.findall(text)) & set(options)
    if bracketed:
        return _only(bracketed)
    alone = [match for match in _ALONE.finditer(text) if match["after"] is None or match.group(1) not in _WORDS]
    return _only({match.group(1) for match in alone} & set(options))


def _announced(match: re.Match[str]) -> bool:
    """Whether the letter is one: in "the answer is a dog" and "Answer: I see" it is a word."""
    return match["after"] is None or (match.group(1).isupper() and match.group(1) != "I")


def _only(letters: set[str]) -> Choice:
    if len(letters) == 1:
        return Choice(letters.pop())
    return Choice(None, f"names several options: {', '.join(sorted(letters))}" if letters else "names no option")
