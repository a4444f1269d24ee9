"""What both ends of a weight update must agree on without talking: buckets and fingerprints.

A bucket is one flat broadcast of bytes; its tensors lie in it one after another, in the manifest's order. This file
knows sizes and bytes, not tensors: it has no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import xxhash

from mmr1.records import TensorSpec

_T = TypeVar("_T")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


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
