"""The tensors of a weight update as they arrive: bucket by bucket from the group, each with its fingerprint.

Fingerprints are taken where buckets are: by XXH3 in the host's memory, by sums of words on a GPU, which is asked for
them once, at the end. Knows no engine and no model.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from mmr1.records import TensorSpec
from mmr1.weight_plan import buckets, digest_of_sum, fingerprint, tensor_bytes, word_sums
from mmr1_rollout_server.transfer_groups import Group

Weights = list[tuple[str, torch.Tensor]]


class Arriving:
    """One update.

    Args:
        end: of it, by time.monotonic().
        views: tensors may lie in the bucket's memory; else each gets memory of its own, because vLLM's layerwise reload
            keeps the tensors of a layer until the layer is complete.
    """

    def __init__(self, group: Group, bucket_bytes: int, end: float, *, views: bool) -> None:
        self._group = group
        self._bucket_bytes = bucket_bytes
        self._end = end
        self._views = views
        self._names: list[str] = []
        self._digests: list[int] = []
        self._sums: list[torch.Tensor] = []
        self.seconds: dict[str, float] = {}  # spent on what; a GPU may do it later

    def weights(self, specs: Sequence[TensorSpec]) -> Iterator[Weights]:
        """Bucket by bucket; the group may fill the next ones meanwhile. Raises RuntimeError as the group does."""
        posted: deque[list[TensorSpec]] = deque()
        for bucket in buckets(specs, self._bucket_bytes):
            begun = time.monotonic()
            flat = torch.empty(sum(map(tensor_bytes, bucket)), dtype=torch.uint8, device=self._group.device)
            self._group.post(flat, self._left())
            self.spend("receiving", begun)
            posted.append(bucket)
            if len(posted) > self._group.num_ahead:
                yield self._take(posted.popleft())
        while posted:
            yield self._take(posted.popleft())

    def fingerprints(self) -> list[tuple[str, int]]:
        """Of everything so far, in order of arrival. Waits for the device."""
        if self._sums:
            begun = time.monotonic()
            self._digests += map(digest_of_sum, torch.cat(self._sums).tolist())
            self._sums = []
            self.spend("waiting_for_the_device", begun)
        return list(zip(self._names, self._digests, strict=True))

    def spend(self, what: str, since: float) -> float:
        """Account for the time since then; returns now."""
        now = time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - since
        return now

    def _take(self, bucket: Sequence[TensorSpec]) -> Weights:
        begun = time.monotonic()
        flat = self._group.take(self._left())
        begun = self.spend("receiving", begun)
        sizes = [tensor_bytes(spec) for spec in bucket]
        parts = torch.split(flat, sizes)
        self._names += [spec.name for spec in bucket]
        if flat.device.type == "cpu":
            self._digests += digests(flat, sizes)
        else:
            self._sums.append(word_sums(flat, sizes))
        begun = self.spend("fingerprints", begun)
        weights = []
        for spec, data in zip(bucket, parts, strict=True):
            dtype = getattr(torch, spec.dtype)
            own = data if self._views and data.storage_offset() % dtype.itemsize == 0 else data.clone()
            weights.append((spec.name, own.view(dtype).view(spec.shape)))
        self.spend("copying", begun)
        return weights

    def _left(self) -> float:
        return max(0.001, self._end - time.monotonic())


def digests(flat: torch.Tensor, sizes: Sequence[int]) -> list[int]:
    """The fingerprints of a bucket's tensors. Waits for the device where the bucket is."""
    if flat.device.type == "cpu":
        return [fingerprint(data.numpy().data) for data in torch.split(flat, list(sizes))]
    return list(map(digest_of_sum, word_sums(flat, sizes).tolist()))
