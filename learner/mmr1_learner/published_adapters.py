"""A policy whose adapters are sent alone: the base model's tensors once to each group of servers, then A and B.

The base model does not change while adapters are trained, so nothing is merged after a step. Merged weights exist only
where they are asked for, in `state`. Like published.py it knows nothing of what is sent when.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmr1.config import RunConfig
from mmr1.records import AdapterSpec, TensorSpec
from mmr1.weight_plan import cut
from mmr1_learner.adapters import Source, file_name, is_adapter, merge
from mmr1_learner.model import Policy
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from mmr1_learner.whole import bytes_of, change_whole, gathered, shape_of

_ADAPTERS = b"p"
# Of planted adapters: how large a layer's change is, as a share of its weight. Far above any dtype's rounding.
_PLANTED_CHANGE = 0.2


def publish(config: RunConfig, policy: Policy, ranks: Ranks) -> Published:
    """The policy as this run sends it."""
    if config.sends_adapters:
        return PublishedAdapters(policy, ranks, config.weight_bucket_bytes, config.lora_rank, config.lora_alpha)
    return Published(policy, ranks, config.weight_bucket_bytes)


class PublishedAdapters(Published):
    """Every rank calls `refresh`, as with any; `planted` is rank 0's, while the others listen in `tell`."""

    def __init__(self, policy: Policy, ranks: Ranks, bucket_bytes: int, rank: int, alpha: float) -> None:
        super().__init__(policy, ranks, bucket_bytes)
        self._rank, self._alpha = rank, alpha
        self._parameters: dict[str, nn.Parameter] = {
            name: part for name, part in policy.hf.named_parameters() if is_adapter(name)
        }
        self._adapters: dict[str, Tensor] = {}  # whole copies, by their names in the model
        self._base: dict[str, Tensor] = {}  # whole copies on rank 0 of what ZeRO-3 has cut
        self._base_is_apart = self._partitioned  # until it has been put together, once

    def refresh(self) -> None:
        self._has_made()
        if self._base_is_apart:
            self._base_is_apart = False
            for bucket in cut(((bytes_of(source.weight), source) for source in self._sources), self._bucket_bytes):
                with gathered([source.weight for source in bucket]):
                    if self._ranks.is_first:
                        self._base |= {source.name: source.weight.data.to("cpu", copy=True) for source in bucket}
        self._adapters = self.adapter_tensors()

    def state(self) -> dict[str, Tensor]:
        """Merged, as an export holds them; empty but on rank 0."""
        if not self._ranks.is_first:
            return {}
        return {source.name: self._merged(source) for source in self._sources}

    def base_tensors(self) -> list[tuple[str, Tensor]]:
        """The base model alone, by the names and in the order of `manifest`."""
        return [(self.policy.published_name(source.name), self._weight(source)) for source in self._sources]

    def adapter(self) -> AdapterSpec:
        """What follows the base model in a full update, and is all of an adapter's update."""
        specs = (
            TensorSpec(self._sent_name(name), str(part.dtype).removeprefix("torch."), shape_of(part))
            for name, part in self._parameters.items()
        )
        return AdapterSpec(self._rank, self._alpha, tuple(specs))

    def named_adapters(self) -> list[tuple[str, Tensor]]:
        """The adapters as they were at the last `refresh`, by the names that `adapter` gives."""
        return [(self._sent_name(name), tensor) for name, tensor in self._adapters.items()]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Other adapters for a while, which surely change what the model computes; its own come back exactly.

        New adapters add nothing (B is 0), so whether a server applies any could not be told from them.
        """
        own = self._adapters
        self._change({**own, **self._planted()})
        try:
            yield
        finally:
            self._change(own)

    def _planted(self) -> dict[str, Tensor]:
        """A random B for each A, so that the expected norm of scale B A is a share of the weight's.

        With independent entries of variance v, E |B A|^2 = v rows(B) |A|^2.
        """
        names = {id(part): name for name, part in self._parameters.items()}
        generator = torch.Generator().manual_seed(0)
        values = {}
        for source in self._sources:
            if source.down is None or source.up is None:
                continue
            up = self._adapters[names[id(source.up)]]
            down = self._adapters[names[id(source.down)]].float().norm().item()
            weight = self._weight(source).float().norm().item()
            deviation = _PLANTED_CHANGE * weight / max(source.scale * up.shape[0] ** 0.5 * down, 1e-30)
            values[names[id(source.up)]] = (torch.randn(up.shape, generator=generator) * deviation).to(up.dtype)
        return values

    def _change(self, adapters: dict[str, Tensor]) -> None:
        """Rank 0: these are the adapters now, in the policy and in what is sent."""
        self._adapters = adapters
        if self._partitioned:
            self._ranks.share(_ADAPTERS)
        change_whole([self._parameters[name] for name in adapters], list(adapters.values()))

    def _heed(self, kind: bytes, payload: bytes) -> None:
        if kind == _ADAPTERS:  # rank 0's values count
            parts = list(self._parameters.values())
            change_whole(parts, [torch.empty(shape_of(part)) for part in parts])
        else:
            super()._heed(kind, payload)

    def _weight(self, source: Source) -> Tensor:
        return self._base[source.name] if self._partitioned else source.weight.data

    def _merged(self, source: Source) -> Tensor:
        weight = self._weight(source)
        if source.down is None or source.up is None:
            return weight
        names = {id(part): name for name, part in self._parameters.items()}
        down, up = self._adapters[names[id(source.down)]], self._adapters[names[id(source.up)]]
        return merge(weight, down, up, source.scale)

    def _sent_name(self, name: str) -> str:
        return file_name(self.policy.published_name(name))
