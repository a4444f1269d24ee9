"""What each token of a completion says, so that a completion can be shown token by token.

It knows a tokenizer and nothing of where token ids come from or what becomes of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what a decoder gives for bytes that are no whole character


class TokenTexts:
    """One tokenizer's. A token's text is looked up once: it is what it adds behind another token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some decoders drop the space before a token that stands first, so none does.
        self._before: list[int] = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._num_before = len(self._decode(self._before))
        self._known: dict[int, str] = {}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """A text for each token, special tokens too; joined they are the completion.

        Where only several tokens make a character, the first of them has it and the others have nothing.
        """
        texts = [self._one(token) for token in token_ids]
        place = 0
        while place < len(texts):
            end = place
            while end < len(texts) and _BROKEN in texts[end]:
                end += 1
            if end > place:
                texts[place:end] = [self._added(token_ids[place:end]), *[""] * (end - place - 1)]
            place = end + 1
        return texts

    def _one(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._added([token])
        return self._known[token]

    def _added(self, token_ids: Sequence[int]) -> str:
        return self._decode([*self._before, *token_ids])[self._num_before :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


__all__ = ["TokenTexts"]
