"""The token ids of a dataset's answers, set down in a temporary file: any is found at once, and none is in memory.

It knows how rows are set down (mmr1.reading.row_store), and no tokenizer, template or problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mmr1.reading.row_store import RowStore

TokenIds = tuple[int, ...]


class Answers:
    """Append answers, `seal`, then read. Threads may read at once."""

    def __init__(self) -> None:
        self._store = RowStore()

    def append(self, token_ids: Sequence[int]) -> None:
        """Raises ConfigurationError: the disk is full."""
        self._store.append(list(token_ids), task="", file=0, number=0)  # where a row came from its problem knows

    def seal(self) -> None:
        """No more answers. Raises ConfigurationError as `append` does."""
        self._store.seal()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> TokenIds:
        return tuple(json.loads(self._store.content(index)))

    def __iter__(self) -> Iterator[TokenIds]:
        return (tuple(json.loads(content)) for content in self._store.contents(0, len(self)))


__all__ = ["Answers", "TokenIds"]
