"""How alike are two texts? Normalisation, tokens, and the four measures of OCR, on rapidfuzz.

Everything here is total and takes any text; nothing backtracks, and no loop runs over a text's characters in Python. It
knows no task, and nothing of where in a response a text stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

Whitespace = Literal["collapse", "keep", "remove"]
Unicode = Literal["NFC", "NFKC", "none"]
Case = Literal["keep", "ignore"]
Punctuation = Literal["keep", "ignore"]
Fence = Literal["strip", "keep"]
Tokens = Literal["auto", "words", "characters"]

# Python sorts a run of combining marks in quadratic time. Unicode's stream-safe format (UAX #15, 13) allows this many.
MAX_MARKS_IN_A_ROW = 30
_MARK = "\0"
# Latin, Chinese, kana and Hangul, for which there is no need to look at each character.
_WITHOUT_MARKS = re.compile("[\0-\u02ff\u3000-\u3029\u3030-\u3098\u309b-\ua4cf\uac00-\ud7a3\uff00-\uff9d]*")

# Scripts that put no spaces between words: kana, Han with its extensions, Thai, Lao, Tibetan, Myanmar, Khmer; and the
# punctuation and full-width signs that go with them. Hangul is absent: Korean has spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3001-\u312f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
# One way to match at every place: a character of these, or a run of others.
_AUTO_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# The word after an opening fence: a language's name, not text.
_INFO_STRING = re.compile(r"[\w+#.-]*")


def strip_fence(text: str) -> str:
    """What stands between ``` and ```, when these enclose the whole text; otherwise the text as it is."""
    fenced = text.strip()
    inside = fenced[3:-3]
    if len(fenced) < 6 or not (fenced.startswith("```") and fenced.endswith("```")) or "```" in inside:
        return text
    first, newline, rest = inside.partition("\n")
    # On one line, what follows the fence is the text itself.
    if not newline:
        return first
    return rest if _INFO_STRING.fullmatch(first.strip()) else f"{first}\n{rest}"


def normalise(
    text: str,
    *,
    whitespace: Whitespace = "collapse",
    unicode: Unicode = "NFC",
    case: Case = "keep",
    punctuation: Punctuation = "keep",
) -> str:
    """The text with the differences taken out that shall not count.

    `case="ignore"` is Unicode's full case folding. `punctuation="ignore"` deletes the categories P*. `whitespace`:
    "collapse" makes every run one space and trims, "remove" deletes all of it. A text with more than
    MAX_MARKS_IN_A_ROW combining marks in a row gets no Unicode normalisation: no script has that, and it takes
    quadratic time.
    """
    form = "none" if unicode == "none" or _has_endless_marks(text) else unicode
    text = _in_form(text, form)
    if case == "ignore":
        text = text.casefold()
    if punctuation == "ignore":
        text = text.translate({ord(char): None for char in set(text) if unicodedata.category(char).startswith("P")})
    if whitespace != "keep":
        text = (" " if whitespace == "collapse" else "").join(text.split())
    # What was folded or taken out may have brought a letter and its accent together, and so may have made a long run.
    return text if form == "none" or _has_endless_marks(text) else _in_form(text, form)


def tokenise(text: str, tokens: Tokens = "auto") -> list[str]:
    """words: what stands between white space. characters: each one that is not white space.

    auto: each character of a script that is written without spaces (Chinese, Japanese, Thai, Khmer and their
    neighbours; their punctuation too) is a token, and so is each run of other characters between these and white space:
    "我有3 apples" is 我, 有, 3, apples.
    """
    if tokens == "words":
        return text.split()
    if tokens == "characters":
        return list("".join(text.split()))
    return _AUTO_TOKEN.findall(text)


def edit_distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Levenshtein's: how many insertions, deletions and substitutions. The time is the product of the lengths / 64."""
    return Levenshtein.distance(one, other)


def edit_similarity(one: Sequence[Hashable], other: Sequence[Hashable], distance: int | None = None) -> float:
    """1 - edit distance / the longer one's length; 1 when both are empty. Symmetric, from 0 to 1.

    `distance`: theirs, where it is known.
    """
    longest = max(len(one), len(other))
    if distance is None:
        distance = edit_distance(one, other)
    return 1.0 - distance / longest if longest else 1.0


def error_rate(read: Sequence[Hashable], true: Sequence[Hashable], distance: int | None = None) -> float:
    """Edit distance / length of the truth: CER on characters, WER on words. May exceed 1.

    For an empty truth 0 when nothing was read, else 1 (the rate is not defined there). `distance`: theirs, where it is
    known.
    """
    if not true:
        return 1.0 if read else 0.0
    return (edit_distance(read, true) if distance is None else distance) / len(true)


def token_f1(read: Sequence[str], true: Sequence[str]) -> float:
    """2 · common / (both lengths), tokens counted as often as both have them, as in SQuAD; 1 when both are empty."""
    if not read and not true:
        return 1.0
    common = (Counter(read) & Counter(true)).total()
    return 2 * common / (len(read) + len(true))


def _in_form(text: str, form: Unicode) -> str:
    return text if form == "none" else unicodedata.normalize(form, text)


def _is_mark(char: str) -> bool:
    """Whether a character, once taken apart, begins with a combining mark, and so continues a run of them."""
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) != 0


def _has_endless_marks(text: str) -> bool:
    """Whether some run of combining marks exceeds MAX_MARKS_IN_A_ROW. A loop over the distinct characters only."""
    if _WITHOUT_MARKS.fullmatch(text):
        return False
    marks = {ord(char): _MARK for char in set(text) if _is_mark(char)}
    if not marks:
        return False
    return _MARK * (MAX_MARKS_IN_A_ROW + 1) in text.translate({ord(_MARK): " "} | marks)
