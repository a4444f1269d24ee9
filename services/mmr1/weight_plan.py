"""What both ends of a weight update must agree on without talking: buckets and fingerprints.

A bucket is one flat broadcast of bytes; its tensors lie in it one after another, in the manifest's order. This file
knows sizes and bytes; the tensors of `word_sums` are handed in: it has no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from shutil import which
from typing import Any, TypeVar

import xxhash

from mmr1.records import TensorSpec

_T = TypeVar("_T")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}

_WORD_BYTES = 8
FOLD = 29

# SplitMix64's constants, as signed numbers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
LAST_SHIFT = 31


def tensor_bytes(spec: TensorSpec) -> int:
    """Size of the tensor in bytes. Raises KeyError for a dtype that no policy has."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.dtype]


def buckets(tensors: Iterable[TensorSpec], bucket_bytes: int) -> Iterator[list[TensorSpec]]:
    """Cut the manifest, in order, into runs of at most `bucket_bytes`; a larger tensor is a bucket of its own."""
    return cut(((tensor_bytes(spec), spec) for spec in tensors), bucket_bytes)


def cut(items: Iterable[tuple[int, _T]], bucket_bytes: int) -> Iterator[list[_T]]:
    """(size, item) in order, in runs of at most `bucket_bytes`; a larger item is a run of its own."""
    current: list[_T] = []
    held = 0
    for size, item in items:
        if current and held + size > bucket_bytes:
            yield current
            current, held = [], 0
        current.append(item)
        held += size
    if current:
        yield current


def fingerprint(data: bytes | memoryview) -> int:
    """The 64-bit digest (XXH3) of a tensor's bytes."""
    return xxhash.xxh3_64_intdigest(data)


def word_keys(positions: Any) -> Any:
    """The odd factor of each 64-bit word of a bucket, from its position in it.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) of the position. Keys in
    an arithmetic progression would let like changes cancel: signs flipped in words 0 and 3 one way, 1 and 2 the other.
    """
    mixed = (positions + 1) * GOLDEN
    for shift, factor in MIX:
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return (mixed ^ _shifted(mixed, LAST_SHIFT)) | 1


def _shifted(words: Any, bits: int) -> Any:
    """To the right, filled up with zeros: the integers are signed, and would be filled up with their sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def word_sums(flat: Any, sizes: Sequence[int]) -> Any:
    """The 64-bit digest of each tensor of a bucket, where the bucket lies: in a GPU's memory, without leaving it.

    The sum of words times the odd keys of their positions, modulo 2^64, after the upper bits of each word are folded
    onto the lower ones, at no multiple of a number's width: no change of a single word leaves it as it was, and changes
    of several cancel about once in 2^64, signs that flip and numbers that change places included. It is
    against faults, as XXH3 is, and not against attacks.

    Args:
        flat: [bytes of the bucket], uint8, starting at a multiple of eight bytes.
        sizes: of its tensors, in bytes.

    Returns:
        [number of sizes], int64: each modulo 2^64 is a digest.
    """
    whole = [-(-size // _WORD_BYTES) for size in sizes]
    if any(size % _WORD_BYTES for size in sizes):  # a tensor's last word is filled up with zeros
        padded = flat.new_zeros(sum(whole) * _WORD_BYTES)
        begin = 0
        for part, num_words in zip(flat.split(list(sizes)), whole, strict=True):
            padded[begin : begin + len(part)] = part
            begin += num_words * _WORD_BYTES
        flat = padded
    words = flat.view(_integers(flat))
    kernel = _kernel() if flat.is_cuda else None
    return kernel(words, whole) if kernel else plain_word_sums(words, whole)


@cache
def _kernel() -> Any:
    """The same sums in one kernel; None where Triton is missing, or the C compiler that it calls. They agree."""
    try:
        from mmr1.word_sums_kernel import sum_words
    except ImportError:
        return None
    return sum_words if os.environ.get("CC") or any(map(which, ("gcc", "clang"))) else None


def plain_word_sums(words: Any, num_words: Sequence[int]) -> Any:
    """The definition of `word_sums`, in tensor operations: int64 words of all tensors, and how many each has."""
    keys = word_keys(words.new_ones(len(words)).cumsum(0) - 1)
    mixed = (words ^ _shifted(words, FOLD)) * keys  # a word and its inverse stay unlike
    result = words.new_zeros(len(num_words))
    for index, part in enumerate(mixed.split(list(num_words))):
        result[index] = part.sum()
    return result


def _integers(flat: Any) -> Any:
    """The type of 64-bit integers, of whatever library the bucket is."""
    return flat.new_zeros(0).long().dtype


def digest_of_sum(value: int) -> int:
    """What a signed 64-bit sum is as a fingerprint on the wire."""
    return value % 2**64
