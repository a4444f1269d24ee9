"""What an interrupted learner needs to go on exactly, by parameter name and for any number of ranks.

The float32 master weights of what is trained and AdamW's two moments, whole, in safetensors: nothing here is unpickled.
All ranks put each tensor together; rank 0 alone writes, and when loading it alone reads and sends them on, so only its
machine needs the run's folder. How DeepSpeed's optimizers hold these tensors is known here and nowhere else. Files are
written into a folder that somebody else makes durable.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from mmr1.errors import ConfigurationError
from mmr1.weight_plan import cut
from mmr1_learner.model import Policy
from mmr1_learner.ranks import Ranks
from mmr1_learner.whole import change_whole, gathered, is_partitioned, shape_of

FORMAT = 1
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
_INDEX, _RANDOM = "index.json", "random.safetensors"
_FILE_BYTES = 2**30
_WRITERS = 4  # threads, each of which holds a file's tensors in the host's memory


def prepare_states(engine: Any) -> None:
    """Give AdamW its moments, zero as at its first step, so that they can be saved and loaded at any time."""
    optimizer = engine.basic_optimizer
    for master in flat_masters(engine):
        state = optimizer.state[master]
        if not state:
            device = master.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state |= {key: torch.zeros_like(master, memory_format=torch.preserve_format) for key in MOMENTS}
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


class TrainingState:
    """Saves and loads what one engine, and a reference that moves, hold. Every rank calls every method."""

    def __init__(self, engine: Any, ranks: Ranks, reference: Policy | None = None) -> None:
        self._engine = engine
        self._ranks = ranks
        self._reference = reference
        self._trained = [(name, part) for name, part in engine.module.named_parameters() if part.requires_grad]
        prepare_states(engine)

    def save(self, folder: Path | None) -> None:
        """Write everything into `folder`, which rank 0 makes and knows. Bitwise: nothing is rounded."""
        index: dict[str, Any] = {"format": FORMAT, "adam_steps": self._adam_steps(), "files": []}
        if not self._ranks.is_first:
            folder = None
        if folder:
            folder.mkdir()
        writing: deque[Future[None]] = deque()  # while the next file's tensors are put together
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="checkpoint") as threads:
            for number, tensors in enumerate(self._files()):
                if folder:
                    name = f"state-{number:05d}.safetensors"
                    writing.append(threads.submit(save_file, tensors, folder / name))
                    index["files"].append(name)
                while len(writing) > _WRITERS:
                    writing.popleft().result()
            for written in writing:
                written.result()
        random = self._random_states()
        if folder:
            save_file(random, folder / _RANDOM)
            (folder / _INDEX).write_text(json.dumps(index, indent=1))

    def load(self, folder: Path) -> None:
        """Take up what `save` has written, whatever the number of ranks was then.

        Raises:
            ConfigurationError: it holds other tensors than this run trains: another model, or other options of what is
                trained; or it was written by another version of the learner.
        """
        reader = _Reader(folder) if self._ranks.is_first else None
        index = json.loads(self._ranks.share(json.dumps(reader.index).encode() if reader else None))
        names = {f"{kind}/{name}" for name, _ in self._trained for kind in (MASTER, *MOMENTS)}
        names |= {f"reference/{name}" for name, _ in self._reference_parameters()}
        _check(index, names, folder)
        for name, parameter in self._trained:
            for kind in (MASTER, *MOMENTS):
                self._set(parameter, kind, self._send(reader, f"{kind}/{name}", shape_of(parameter), torch.float32))
        for name, parameter in self._reference_parameters():
            change_whole([parameter], [self._send(reader, f"reference/{name}", shape_of(parameter), parameter.dtype)])
        for state in self._engine.basic_optimizer.state.values():
            state["step"].fill_(index["adam_steps"])
        self._set_random_states(reader.random if reader else None)

    def _files(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of one file after the other; on rank 0, the others help to put them together."""
        entries: list[tuple[str, str, nn.Parameter]] = []
        for name, parameter in self._trained:
            entries += [(kind, name, parameter) for kind in (MASTER, *MOMENTS)]
        entries += [("reference", name, parameter) for name, parameter in self._reference_parameters()]
        sized = [(4 * math.prod(shape_of(parameter)), (kind, name, parameter)) for kind, name, parameter in entries]
        for bucket in cut(sized, _FILE_BYTES):
            tensors = {}
            for kind, name, parameter in bucket:
                whole = self._get(parameter, kind)
                if self._ranks.is_first:
                    tensors[f"{kind}/{name}"] = whole.detach().to("cpu", copy=True).contiguous()
            yield tensors

    def _get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "reference":
            with gathered([parameter]):
                return parameter.data.clone()
        if self._engine.zero_optimization_stage() == 0:
            return parameter.data if kind == MASTER else self._engine.basic_optimizer.state[parameter][kind]
        found: Tensor = (
            safe_get_full_fp32_param(parameter) if kind == MASTER else safe_get_full_optimizer_state(parameter, kind)
        )
        return found.view(shape_of(parameter))

    def _set(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if self._engine.zero_optimization_stage() == 0:
            (parameter.data if kind == MASTER else self._engine.basic_optimizer.state[parameter][kind]).copy_(value)
            return
        if is_partitioned(parameter):
            share = self._share(parameter, value)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, share)
            else:
                safe_set_local_optimizer_state(parameter, share, kind)
        elif kind == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
        if kind == MASTER:
            change_whole([parameter], [value])

    def _share(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a whole tensor, as ZeRO-3 cuts it: equal parts, the last filled up with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        share = torch.zeros(size, dtype=value.dtype, device=value.device)
        mine = value.flatten()[size * self._ranks.rank : size * (self._ranks.rank + 1)]
        share[: mine.numel()] = mine
        return share

    def _send(self, reader: _Reader | None, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Rank 0's tensor, on every rank."""
        device = self._ranks.device
        tensor = reader.tensor(name).to(device) if reader else torch.empty(shape, dtype=dtype, device=device)
        if self._ranks.world_size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def _reference_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self._reference.named_parameters()) if self._reference is not None else []

    def _adam_steps(self) -> int:
        return int(max((float(state["step"]) for state in self._engine.basic_optimizer.state.values()), default=0))

    def _random_states(self) -> dict[str, Tensor]:
        """torch's generators of every rank: nothing but the dropout of adapters draws from them."""
        mine = {"cpu": torch.get_rng_state()}
        if self._ranks.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state()
        found = {}
        for rank in range(self._ranks.world_size):
            for kind, state in mine.items():
                held = state.to(self._ranks.device, copy=True)
                if self._ranks.world_size > 1:
                    dist.broadcast(held, rank)
                found[f"{kind}/{rank}"] = held.cpu()
        return found

    def _set_random_states(self, saved: dict[str, Tensor] | None) -> None:
        """Each rank its own. A rank that was not there goes on with what it has: it has no past to repeat."""
        states = load(self._ranks.share(save(saved) if saved is not None else None))
        rank = self._ranks.rank
        if f"cpu/{rank}" in states:
            torch.set_rng_state(states[f"cpu/{rank}"])
        if f"cuda/{rank}" in states and self._ranks.device.type == "cuda":
            torch.cuda.set_rng_state(states[f"cuda/{rank}"])


class _Reader:
    """Rank 0's end of a saved state."""

    def __init__(self, folder: Path) -> None:
        index = folder / _INDEX
        self.index: dict[str, Any] = json.loads(index.read_text()) if index.is_file() else {"format": 0}
        self._where: dict[str, Path] = {}
        for file in self.index.get("files", []):
            with safe_open(folder / file, framework="pt") as opened:
                self._where |= dict.fromkeys(opened.keys(), folder / file)
        self.index["names"] = sorted(self._where)
        self.random = load_file(folder / _RANDOM) if self.index["format"] == FORMAT else {}

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._where[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor


def _check(index: dict[str, Any], names: set[str], folder: Path) -> None:
    if index["format"] != FORMAT:
        raise ConfigurationError(
            f"checkpoint {folder.parent} was written by another version of the learner (format {index['format']}, this "
            f"one reads {FORMAT}); go on with that version, or give a new run_dir"
        )
    other = sorted(names ^ set(index["names"]))
    if other:
        raise ConfigurationError(
            f"checkpoint {folder.parent} holds other tensors than this run trains ({len(other)}, first {other[0]}); "
            "give the model, lora_ and freeze_ options and ref_sync_steps that it was written with, or a new run_dir"
        )


def flat_masters(engine: Any) -> list[Tensor]:
    """The float32 tensors that AdamW steps on this rank: parameters themselves, or DeepSpeed's flat pieces of them."""
    for attribute in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bfloat16 with float32 gradients
    ):
        if hasattr(engine.optimizer, attribute):
            return list(getattr(engine.optimizer, attribute))
    return [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
