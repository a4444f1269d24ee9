"""What the server's state machine asks of an engine during a weight update. Types only: no torch, no vllm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mmr1.records import AdapterSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """Who meets where, and what will be sent: `tensors` in the order of their broadcast."""

    transport: str
    master_address: str
    master_port: int
    store_prefix: str
    rank: int
    world_size: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: int
    adapter: AdapterSpec | None = None  # whose tensors follow; `tensors` are then the base model's


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What an update wrote. `unwritten` names the engine's parameters that still hold old values, and tensors of an
    adapter that the engine has no place for."""

    num_parameters: int
    unwritten: tuple[str, ...]
    num_packed_copies_refreshed: int

    @property
    def num_parameters_written(self) -> int:
        return self.num_parameters - len(self.unwritten)


class WeightReceiver(Protocol):
    """The engine's side of an update. Each call raises WeightUpdateError when it fails."""

    async def init_transfer(self, plan: TransferPlan, deadline_seconds: float) -> None:
        """Join the group that `plan` describes, leaving an earlier one."""

    async def start_update(self, *, adapter_only: bool = False) -> None:
        """Make the model, or its adapters alone, ready to be overwritten. Nothing may be running."""

    async def receive_update(self, deadline_seconds: float) -> list[tuple[str, int]]:
        """Take every tensor of the plan, or of its adapter; returns (name, fingerprint) in order of arrival."""

    async def finish_update(self) -> WriteReport:
        """Complete the model and forget everything computed with old weights."""

    async def abort_update(self) -> None:
        """Give up an update between two calls; the model is then neither old nor new."""
