"""`word_sums` as one kernel for a GPU: each word is read once, and its key is computed where it is used.

Written with tensor operations the sums read and write a bucket a dozen times over, which takes longer than the
broadcast that they prove. Triton comes with torch for CUDA; this file is imported when the first bucket lies on a GPU.
It knows neither tensors' names nor what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from mmr1.weight_plan import FOLD, GOLDEN, LAST_SHIFT, MIX

_BLOCK_WORDS = 8192
_UNSIGNED = 2**64
_FOLD, _LAST = tl.constexpr(FOLD), tl.constexpr(LAST_SHIFT)
_GOLDEN = tl.constexpr(GOLDEN % _UNSIGNED)
_SHIFT_1, _FACTOR_1 = tl.constexpr(MIX[0][0]), tl.constexpr(MIX[0][1] % _UNSIGNED)
_SHIFT_2, _FACTOR_2 = tl.constexpr(MIX[1][0]), tl.constexpr(MIX[1][1] % _UNSIGNED)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _sum_blocks(words, blocks, sums, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program a block: a run of words of one tensor. `blocks` has its first word, its length and its tensor."""
    block = blocks + 3 * tl.program_id(0)
    first, length, tensor = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    place = tl.arange(0, BLOCK)
    word = tl.load(words + first + place, mask=place < length, other=0).to(tl.uint64, bitcast=True)
    # word_keys, of the word's position in the bucket
    key = ((first + place).to(tl.uint64) + 1) * _GOLDEN
    key = (key ^ (key >> _SHIFT_1)) * _FACTOR_1
    key = (key ^ (key >> _SHIFT_2)) * _FACTOR_2
    key = (key ^ (key >> _LAST)) | 1
    mixed = (word ^ (word >> _FOLD)) * key
    tl.atomic_add(sums + tensor, tl.sum(mixed.to(tl.int64, bitcast=True)))


def sum_words(words: Any, num_words: Sequence[int]) -> Any:
    """Of each tensor of a bucket.

    Args:
        words: [of all tensors], int64, on a GPU.
        num_words: of each tensor, one after another.

    Returns:
        [number of tensors], int64.
    """
    sums = words.new_zeros(len(num_words))
    if len(words):
        blocks = _blocks(words, tuple(num_words))
        _sum_blocks[(len(blocks),)](words, blocks, sums, BLOCK=_BLOCK_WORDS)
    return sums


def _blocks(words: Any, num_words: tuple[int, ...]) -> Any:
    """[number of blocks, 3], int64, where the words are. The buckets of a run are the same in every update."""
    known = _known_blocks.get((num_words, words.device))
    if known is None:
        table, begin = [], 0
        for tensor, count in enumerate(num_words):
            firsts = range(0, count, _BLOCK_WORDS)
            table += [(begin + first, min(_BLOCK_WORDS, count - first), tensor) for first in firsts]
            begin += count
        known = _known_blocks[num_words, words.device] = words.new_tensor(table)
    return known


_known_blocks: dict[tuple[tuple[int, ...], Any], Any] = {}
