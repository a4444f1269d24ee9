"""The policy as rank 0 sends, scores and exports it: whole tensors under the base model's names.

Plain weights are the policy's own, without a copy. What ZeRO-3 has cut over the ranks, or what adapters change, is put
together into copies in the host's memory after each change, by all ranks, before anything is sent. Scoring cut weights
takes all ranks too: the others listen between steps and join rank 0's forwards. Knows nothing of what is sent or why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmr1.families import FAMILIES
from mmr1.records import TensorSpec
from mmr1.weight_plan import cut
from mmr1_learner.adapters import has_adapters, is_adapter, sources
from mmr1_learner.batch_bytes import decode_batch, encode_batch
from mmr1_learner.loss import TokenStats
from mmr1_learner.model import Policy
from mmr1_learner.ranks import Ranks
from mmr1_learner.rows import RowBatch
from mmr1_learner.whole import bytes_of, change_whole, gathered, is_partitioned, shape_of

_WORD, _FORWARD, _SCALE, _RESTORE, _ALIVE = b"w", b"f", b"s", b"r", b"a"
_KEEP_ALIVE_SECONDS = 60.0  # far less than the deadline of a collective


class Published:
    """A policy, seen whole. `refresh`, `tell` and `adapter_tensors` are for every rank; the rest is rank 0's."""

    def __init__(self, policy: Policy, ranks: Ranks, bucket_bytes: int) -> None:
        self.policy = policy
        self._ranks = ranks
        self._bucket_bytes = bucket_bytes
        self._sources = sources(policy.hf)
        self._partitioned = any(is_partitioned(parameter) for parameter in policy.parameters())
        self._copies = self._partitioned or has_adapters(policy)
        self._whole: dict[str, Tensor] = {}
        self._kept: Tensor | None = None  # of a parameter that is scaled for a while
        self._last_alive = time.monotonic()
        on_gpu = ranks.is_first and ranks.device.type == "cuda"
        self._aside = torch.cuda.Stream(ranks.device, priority=-1) if on_gpu else None  # type: ignore[no-untyped-call]
        self.made = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        """The device is done with the last change of what is sent. None without a GPU, where nothing waits."""

    def refresh(self) -> None:
        """Put the tensors together as they are now: called after every change, before anything is sent."""
        self._has_made()
        if not self._copies:
            return
        sized = [(sum(bytes_of(part) for part in source.parameters), source) for source in self._sources]
        for bucket in cut(sized, self._bucket_bytes):
            with gathered([part for source in bucket for part in source.parameters]):
                if self._ranks.is_first:
                    for source in bucket:
                        self._whole[source.name] = self._copied(source.name, source.merged())
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()  # the gathered memory is given to others now

    def _has_made(self) -> None:
        if self.made is not None:
            self.made.record()

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """In the host's memory; from a GPU into the same pinned memory each time, which is many times as fast."""
        if tensor.device.type == "cpu":
            return tensor.to("cpu", copy=True)
        place = self._whole.get(name)
        if place is None:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return place.copy_(tensor, non_blocking=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor by the model's own name, as its `save_pretrained` takes them; a tied one appears once.

        What they hold changes with the next step or `refresh`.
        """
        return dict(self._whole) if self._copies else {source.name: source.weight.data for source in self._sources}

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """The same by the names that published folders and rollout servers know."""
        return [(self._names[name], tensor) for name, tensor in self.state().items()]

    def manifest(self) -> tuple[TensorSpec, ...]:
        """What a weight update sends, in the order in which it is sent."""
        return self._manifest

    # Worked out once: they do not change, and to look for them takes as long as a weight update may.

    @cached_property
    def _names(self) -> dict[str, str]:
        return {source.name: self.policy.published_name(source.name) for source in self._sources}

    @cached_property
    def _manifest(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                self._names[source.name], str(source.weight.dtype).removeprefix("torch."), shape_of(source.weight)
            )
            for source in self._sources
        )

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapters' own parameters, whole, by their names in the model; on rank 0, empty elsewhere."""
        named = {name: part for name, part in self.policy.hf.named_parameters() if is_adapter(name)}
        with gathered(list(named.values())):
            return {name: part.data.to("cpu", copy=True) for name, part in named.items() if self._ranks.is_first}

    @property
    def scores_alone(self) -> bool:
        """Whether rank 0 needs no other rank to score a batch."""
        return not self._partitioned

    @property
    def scores_beside(self) -> bool:
        """Whether it may, while this rank computes a step with the same modules: nothing in them has two states.

        Adapters are switched off for the reference, dropout is for training, and of a family that is not known neither
        is known.
        """
        known = self.policy.hf.config.model_type in FAMILIES
        return self.scores_alone and known and not has_adapters(self.policy) and not self.policy.drops_out

    @contextmanager
    def beside(self) -> Iterator[None]:
        """For a thread beside the one that trains: on a GPU what it computes goes between that one's kernels."""
        if self._aside is None or self.made is None:
            yield
            return
        with torch.cuda.device(self._ranks.device), torch.cuda.stream(self._aside):
            self._aside.wait_event(self.made)
            try:
                yield
            finally:
                self._aside.synchronize()

    @property
    def is_first(self) -> bool:
        return self._ranks.is_first

    # What the parity gate and the probes do with a policy.

    @property
    def hf(self) -> Any:
        return self.policy.hf

    @property
    def training(self) -> bool:
        return self.policy.training

    def train(self, mode: bool = True) -> None:
        self.policy.train(mode)

    def eval(self) -> None:
        self.policy.eval()

    def __call__(self, batch: RowBatch) -> TokenStats:
        """Score the batch, with the other ranks' help where the weights are cut over them."""
        if self._partitioned:
            self._ranks.share(_FORWARD + encode_batch(batch))
        stats: TokenStats = self.policy(batch)
        return stats

    @contextmanager
    def scaled(self, name: str, factor: float) -> Iterator[None]:
        """One of the model's parameters times `factor`, for a while; restored exactly."""
        if not self._partitioned:
            with self.policy.scaled(name, factor):
                yield
            self._has_made()
            return
        self._ranks.share(_SCALE + json.dumps([name, factor]).encode())
        self._scale(name, factor)
        try:
            yield
        finally:
            self._ranks.share(_RESTORE + name.encode())
            self._restore(name)

    def tell(self, word: bytes | None) -> bytes:
        """Rank 0's word, on every rank. The others join its forwards until it comes."""
        if self._ranks.is_first:
            assert word is not None
            self._ranks.share(_WORD + word)
            return word
        while True:
            data = self._ranks.share(None)
            kind, payload = data[:1], data[1:]
            if kind == _WORD:
                return payload
            self._heed(kind, payload)

    def _heed(self, kind: bytes, payload: bytes) -> None:
        """Do what rank 0 has asked for."""
        if kind == _FORWARD:
            was_training = self.policy.training
            self.policy.eval()
            with torch.no_grad():
                self.policy(decode_batch(payload, self._ranks.device))
            self.policy.train(was_training)
        elif kind == _SCALE:
            self._scale(*json.loads(payload))
        elif kind == _RESTORE:
            self._restore(payload.decode())

    def keep_alive(self) -> None:
        """Called often by rank 0 while it waits: `tell` on the others then never waits as long as a collective may.

        Rank 0 waits for rollouts and servers without end; the others must fail only when it is dead.
        """
        if time.monotonic() - self._last_alive >= _KEEP_ALIVE_SECONDS:
            self._ranks.share(_ALIVE)
            self._last_alive = time.monotonic()

    def _scale(self, name: str, factor: float) -> None:
        parameter = self._parameter(name)
        with gathered([parameter]):
            self._kept = parameter.data.clone()
        change_whole([parameter], [self._kept * factor])

    def _restore(self, name: str) -> None:
        assert self._kept is not None
        change_whole([self._parameter(name)], [self._kept])
        self._kept = None

    def _parameter(self, name: str) -> nn.Parameter:
        parameter: nn.Parameter = self.policy.hf.get_parameter(name)
        return parameter
