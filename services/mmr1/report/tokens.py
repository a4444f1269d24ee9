"""A completion as pieces to be coloured: by how far the learner's log-probability of a token is from the sampler's.

Neighbours that need no colour are one piece, so that a page of long completions stays small. It knows no markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = (0.03, 0.1, 0.3, 1.0)  # nats: where each of the four shades begins, on either side
MAX_COLOURED = 250  # pieces of one completion; what follows has no colour


@dataclass(frozen=True)
class Piece:
    """Some text. `level` is 0 for no shade, 1 to 4 where the learner finds it likelier, -1 to -4 less likely."""

    text: str
    level: int = 0
    gap: float | None = None


@dataclass(frozen=True)
class Gaps:
    """What a completion's gaps come to, in words for those who do not see colours; in nats."""

    mean_abs: float
    largest: float
    at: str


def level(gap: float) -> int:
    """The shade of a gap."""
    steps = sum(abs(gap) >= bound for bound in LEVELS)
    return steps if gap > 0 else -steps


def pieces(tokens: object, gaps: object, completion: str, max_characters: int) -> tuple[list[Piece], Gaps | None]:
    """The completion in pieces, and its gaps; one piece and None when there are none on record."""
    told = _told(tokens, gaps)
    if not told:
        return [Piece(clip(completion, max_characters))], None
    found: list[Piece] = []
    plain, length, coloured = "", 0, 0
    for text, gap in told:
        if length + len(text) > max_characters:
            break
        length += len(text)
        shade = level(gap) if gap is not None and coloured < MAX_COLOURED else 0
        if not shade:
            plain += text
            continue
        if plain:
            found.append(Piece(plain))
            plain = ""
        coloured += 1
        found.append(Piece(text, shade, gap))
    whole = "".join(text for text, _ in told)
    if completion.startswith(whole):  # only its first tokens are on record; else they go to the end, special ones too
        whole = completion
    plain += clip(whole[length:], max_characters - length)
    return [*found, *([Piece(plain)] if plain else [])], _summary(told)


def clip(text: str, max_characters: int) -> str:
    """The text's beginning, and how much was left out."""
    if len(text) <= max_characters:
        return text
    return f"{text[:max_characters]} … ({len(text) - max_characters:,} more characters)"


def _told(tokens: object, gaps: object) -> list[tuple[str, float | None]]:
    """Texts with gaps. A token that only ends a character begun before it has no text: the larger gap counts."""
    if not isinstance(tokens, list) or not isinstance(gaps, list):
        return []
    told: list[tuple[str, float | None]] = []
    for text, value in zip(tokens, gaps, strict=False):
        gap = float(value) if isinstance(value, int | float) and math.isfinite(value) else None
        if str(text) or not told:
            told.append((str(text), gap))
        else:
            before, other = told[-1]
            told[-1] = (before, max((g for g in (gap, other) if g is not None), key=abs, default=None))
    return told


def _summary(told: Sequence[tuple[str, float | None]]) -> Gaps | None:
    known = [(text, gap) for text, gap in told if gap is not None]
    if not known:
        return None
    at, largest = max(known, key=lambda one: abs(one[1]))
    return Gaps(sum(abs(gap) for _, gap in known) / len(known), largest, at.strip()[:24] or "a space")


def legend() -> list[tuple[int, str]]:
    """Every shade with where it begins, in nats, the most negative first."""
    shades = list(enumerate(LEVELS, start=1))
    return [
        *((-place, f"\u2212{bound:g}") for place, bound in reversed(shades)),
        (0, "0"),
        *((place, f"+{bound:g}") for place, bound in shades),
    ]


__all__ = ["LEVELS", "MAX_COLOURED", "Gaps", "Piece", "clip", "legend", "level", "pieces"]
