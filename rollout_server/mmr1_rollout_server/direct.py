"""Updates that go straight to known destinations: whether they may, what they wrote, and now and then a reading back.

The account says which copies were asked for. That the parameters hold what has arrived is read from the parameters: put
back into the layout of the buckets, they must have the fingerprints of the bytes that were received. Knows tensors and
a model; it does not know vLLM, nor what is done about a failure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmr1.records import TensorSpec
from mmr1.weight_plan import buckets, tensor_bytes
from mmr1_rollout_server.arriving import Weights, digests
from mmr1_rollout_server.destinations import Destinations

# Reading back moves as many bytes as an update and waits for the device: for one update in fifty, some two percent.
PROVE_EVERY = 50


class DirectUpdates:
    """What updates of one manifest to these destinations share."""

    def __init__(self, destinations: Destinations, tensors: tuple[TensorSpec, ...]) -> None:
        self.destinations = destinations
        self._tensors = tensors
        self._bucket_bytes = 0
        self._num_begun = 0
        self._proves = False
        self._device = torch.device("cpu")  # of the received buckets: fingerprints are taken as theirs were
        self._kept: dict[str, int] = {}  # fingerprints of tensors of which only a part belongs here

    def fit(self, parameters: dict[str, Tensor], tensors: tuple[TensorSpec, ...]) -> bool:
        """Whether an update of this manifest may go to the destinations: they still are the model's parameters."""
        return tensors == self._tensors and self.destinations.are_live(parameters)

    def begin(self, bucket_bytes: int) -> None:
        """The first update is proved, and then every `PROVE_EVERY`th."""
        self._bucket_bytes = bucket_bytes
        self._proves = self._num_begun % PROVE_EVERY == 0
        self._num_begun += 1
        self._kept = {}
        self.destinations.begin()

    def write(self, weights: Weights) -> None:
        """One bucket, as it has arrived."""
        self.destinations.write(weights)
        if self._proves:
            self._device = weights[0][1].device
            # A worker of several keeps a part of a tensor: its fingerprint is that of the part, with zeros around it.
            for name, tensor in weights:
                if not self._is_whole(name, tensor.numel()):
                    alone = torch.zeros_like(tensor)
                    for to, piece in zip(*(self._pieces(name, each) for each in (alone, tensor)), strict=True):
                        to.copy_(piece)
                    self._kept[name] = digests(alone.view(-1).view(torch.uint8), [alone.nbytes])[0]

    def finish(self, fingerprints: Sequence[tuple[str, int]]) -> list[str]:
        """Names of the parameters that were not written as they should.

        Raises:
            RuntimeError: a parameter does not hold what was received, though the account says so.
        """
        unwritten = sorted(self.destinations.unwritten())
        if self._proves and not unwritten:
            self._prove(dict(fingerprints))
        return unwritten

    def _prove(self, received: dict[str, int]) -> None:
        for bucket in buckets(self._tensors, self._bucket_bytes):
            sizes = [tensor_bytes(spec) for spec in bucket]
            flat = torch.zeros(sum(sizes), dtype=torch.uint8, device=self._device)
            for spec, data in zip(bucket, torch.split(flat, sizes), strict=True):
                dtype = getattr(torch, spec.dtype)
                aligned = data.storage_offset() % dtype.itemsize == 0
                tensor = (data if aligned else data.clone()).view(dtype).view(spec.shape)
                places, pieces = self.destinations.pairs([(spec.name, tensor)])
                torch._foreach_copy_(pieces, places)
                if not aligned:
                    data.copy_(tensor.view(-1).view(torch.uint8))
                if spec.name in self._kept:
                    held = digests(tensor.reshape(-1).view(torch.uint8).clone(), [tensor.nbytes])[0]
                    self._require(held == self._kept[spec.name], spec.name)
            for spec, digest in zip(bucket, digests(flat, sizes), strict=True):
                self._require(spec.name in self._kept or digest == received[spec.name], spec.name)

    def _pieces(self, name: str, tensor: Tensor) -> list[Tensor]:
        return self.destinations.pairs([(name, tensor)])[1]

    def _is_whole(self, name: str, num_elements: int) -> bool:
        return sum(copy.destination.numel() for copy in self.destinations.copies[name]) == num_elements

    @staticmethod
    def _require(holds: bool, name: str) -> None:
        if not holds:
            raise RuntimeError(f"the engine's parameters do not hold {name} as it was received")
