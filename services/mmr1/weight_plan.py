"""What both ends of a weight update must agree on without talking: buckets and fingerprints.

A bucket is one flat broadcast of bytes; its tensors lie in it one after another, in the manifest's order. This file
knows sizes and bytes, not tensors: it has no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import xxhash

from mmr1.records import TensorSpec

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


def tensor_bytes(spec: TensorSpec) -> int:
    """Size of the tensor in bytes. Raises KeyError for a dtype that no policy has."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.dtype]


def buckets(tensors: Iterable[TensorSpec], bucket_bytes: int) -> Iterator[list[TensorSpec]]:
    """Cut the manifest, in order, into runs of at most `bucket_bytes`; a larger tensor is a bucket of its own."""
    current: list[TensorSpec] = []
    size = 0
    for spec in tensors:
        num_bytes = tensor_bytes(spec)
        if current and size + num_bytes > bucket_bytes:
            yield current
            current, size = [], 0
        current.append(spec)
        size += num_bytes
    if current:
        yield current


def fingerprint(data: bytes | memoryview) -> int:
    """The 64-bit digest (XXH3) of a tensor's bytes."""
    return xxhash.xxh3_64_intdigest(data)
