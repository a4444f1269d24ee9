"""A RowBatch as bytes, for ranks that join another rank's forward: safetensors, and JSON for what is no tensor."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mmr1_learner.calls import ModelCall
from mmr1_learner.rows import RowBatch

_PLAIN = ("input_ids", "owners", "segments", "position_ids")
_GROUPED = ("images", "token_types", "derived")


def encode_batch(batch: RowBatch) -> bytes:
    """Everything of it, from whatever device it is on."""
    values = {spec.name: getattr(batch, spec.name) for spec in fields(batch) if spec.name != "calls"}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    rest: dict[str, Any] = {name: value for name, value in values.items() if name not in tensors}
    for index, call in enumerate(batch.calls):
        named = {name: getattr(call, name) for name in _PLAIN}
        named |= {f"{kind}.{name}": tensor for kind in _GROUPED for name, tensor in getattr(call, kind).items()}
        tensors |= {f"calls.{index}.{name}": tensor for name, tensor in named.items() if tensor is not None}
    header = json.dumps({"rest": rest, "on_host": [sorted(call.on_host) for call in batch.calls]}).encode()
    packed = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return len(header).to_bytes(4, "little") + header + packed


def decode_batch(data: bytes, device: torch.device) -> RowBatch:
    """What `encode_batch` was given, on `device`, but for what a call has `on_host`."""
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    tensors = load(data[4 + length :])
    calls = tuple(_call(tensors, f"calls.{index}.", on_host, device) for index, on_host in enumerate(header["on_host"]))
    values: dict[str, Any] = {name: t.to(device) for name, t in tensors.items() if not name.startswith("calls.")}
    return RowBatch(calls=calls, **values, **header["rest"])


def _call(tensors: dict[str, Tensor], prefix: str, on_host: list[str], device: torch.device) -> ModelCall:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    found: dict[str, Any] = {name: own.get(name) for name in _PLAIN}
    for kind in _GROUPED:
        found[kind] = {name.removeprefix(f"{kind}."): t for name, t in own.items() if name.startswith(f"{kind}.")}
    call = ModelCall(**found, on_host=frozenset(on_host))
    return (call if call.position_ids is None else call.with_stretches()).to(device)
