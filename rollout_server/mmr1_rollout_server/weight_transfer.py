"""What runs inside vLLM's worker process during a weight update: receive, fingerprint, load, account.

vLLM imports this file in every worker (`worker_extension_cls`) before it builds its weight transfer engine, and so
finds the backend registered at the end. It knows tensors and the engine's model. It does not know versions, learners,
or who may update: the server's `weights.py` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from mmr1.records import TensorSpec
from mmr1_rollout_server import cpu_generator, engine_failures, orphan_guard
from mmr1_rollout_server.adapter_loading import place, plain_layers
from mmr1_rollout_server.arriving import Arriving
from mmr1_rollout_server.destinations import find_destinations
from mmr1_rollout_server.direct import DirectUpdates
from mmr1_rollout_server.transfer_groups import Group, join

BACKEND = "mmr1"

_log = logging.getLogger(__name__)

# Its "Failed to load weights" names every module without a checkpoint tensor (rotary tables, a tied head) at every
# update. `UpdateReport` is exact about what was not written, and the server refuses the update for it.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vllm is untyped here
    """Who takes part, and the manifest: `tensors` as [name, dtype, shape] in the order of their broadcast."""

    transport: str
    master_address: str
    master_port: int
    store_prefix: str
    rank: int
    world_size: int
    tensors: list[Any]
    bucket_bytes: int
    deadline_seconds: float
    adapter: dict[str, Any] | None = None  # rank, alpha and its own tensors, which follow the others


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One update; what it consists of was said at initialisation, and of an adapter alone at its start."""

    deadline_seconds: float


@dataclass
class UpdateReport:
    """What one update did to the model. `unwritten` names the parameters that hold old values, in whole or in part."""

    fingerprints: list[tuple[str, int]] = field(default_factory=list)
    num_parameters: int = 0
    unwritten: list[str] = field(default_factory=list)
    num_packed_copies_refreshed: int = 0
    adapter_id: int = 0  # of the adapter that is in place; 0: none
    seconds: dict[str, float] = field(default_factory=dict)  # spent on what


class BucketEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """vLLM's weight transfer engine for one flat broadcast per bucket.

    The first update of a manifest goes through vLLM's layerwise reload, which packs fused and quantised layers anew;
    where it packs nothing, later ones go straight to the places that `destinations.py` finds. After a failure the
    kernels have their old tensors back, layers already complete excepted, or some new ones: the model is usable by no
    one but the next full update.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    group: Group | None = None
    tensors: tuple[TensorSpec, ...] = ()
    bucket_bytes = 0
    adapter: dict[str, Any] | None = None
    adapter_tensors: tuple[TensorSpec, ...] = ()
    adapter_only = False  # said before the start of an update
    adapter_id = 0
    report = UpdateReport()
    direct: DirectUpdates | None = None  # where the destinations of a manifest are known
    _is_direct = False  # this update goes to them

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.shutdown()
        self.tensors = _specs(init_info.tensors)
        self.adapter = init_info.adapter
        self.adapter_tensors = _specs(self.adapter["tensors"]) if self.adapter else ()
        self.bucket_bytes = init_info.bucket_bytes
        if self.adapter and self.vllm_config.lora_config is None:
            raise ValueError("the learner sends adapters, and this server was started with lora_updates merged")
        self.group = join(
            init_info.transport,
            init_info.master_address,
            init_info.master_port,
            init_info.store_prefix,
            init_info.rank + self.parallel_config.rank,  # the workers of one engine have ranks that follow each other
            init_info.world_size,
            init_info.deadline_seconds,
            torch.device(self.device),
        )

    def start_weight_update(self) -> None:
        self._loaded: set[str] = set()
        self._adapter: dict[str, torch.Tensor] = {}
        self._is_direct = False
        if self.adapter_only:
            self._expected: set[str] = set()
        else:
            with set_current_vllm_config(self.vllm_config), plain_layers(self.model):
                parameters = dict(self.model.named_parameters())  # a tied tensor counts once
                self._expected = set(parameters)
                self._is_direct = self._goes_direct(parameters)
                if not self._is_direct:
                    initialize_layerwise_reload(self.model)
        self.report = UpdateReport(num_parameters=len(self._expected) + len(self.adapter_tensors))

    def _goes_direct(self, parameters: dict[str, torch.Tensor]) -> bool:
        """Whether the destinations that are known still are the model's; else they are forgotten, and found anew."""
        if self.direct is None:
            return False
        if not self.direct.fit(parameters, self.tensors):
            _log.warning(
                "the engine's parameters or the manifest have changed: this update goes through vLLM's loaders"
            )
            self.direct = None
            return False
        self.direct.begin(self.bucket_bytes)
        return True

    def update_weights(self, update_info: Any) -> None:
        # The base class would synchronise an accelerator, and raises where there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        if self.group is None:
            raise RuntimeError("no transfer group: initialise first")
        end = time.monotonic() + update_info.deadline_seconds
        arriving = Arriving(self.group, self.bucket_bytes, end, views=self._is_direct)
        # Inside torch.device every call takes its way through Python, and only the loaders need it.
        device = nullcontext() if self._is_direct else torch.device(self.device)
        try:
            with set_current_vllm_config(self.vllm_config), device, plain_layers(self.model):
                for weights in arriving.weights(() if self.adapter_only else self.tensors):
                    begun = time.monotonic()
                    if self._is_direct and self.direct is not None:
                        self.direct.write(weights)
                    else:
                        self._loaded |= self.model.load_weights(iter(weights)) or set()
                    arriving.spend("loading", begun)
                for weights in arriving.weights(self.adapter_tensors):
                    self._adapter.update(weights)
                self.report.fingerprints = arriving.fingerprints()
                self.report.seconds = arriving.seconds
        except BaseException:
            self.abort()
            self.shutdown()
            raise

    def finish_weight_update(self) -> None:
        if self.adapter_only:
            return
        if self._is_direct and self.direct is not None:
            direct, self.direct = self.direct, None  # after a failure the loaders take the next update
            self.report.unwritten = direct.finish(self.report.fingerprints)
            if not self.report.unwritten:
                self.direct = direct
            return
        with set_current_vllm_config(self.vllm_config), torch.device(self.device), plain_layers(self.model):
            self.report.unwritten = sorted((self._expected - self._loaded) | self._incomplete())
            finalize_layerwise_reload(self.model, self.model_config)
            self.report.num_packed_copies_refreshed = refresh_packed_copies(self.model)
            if not self.report.unwritten and self._is_plain():
                found = find_destinations(self.model, self.tensors, self.device, num_checkpoint_elements)
                self.direct = DirectUpdates(found, self.tensors) if found else None

    def _is_plain(self) -> bool:
        """Whether layers compute with what a checkpoint has: nothing is packed, quantised or wrapped."""
        config = self.vllm_config
        return current_platform.is_cuda() and config.quant_config is None and config.lora_config is None

    def place_adapter(self) -> None:
        """The last act of an update with adapters. vLLM itself drops them whenever an update is finished."""
        if self.adapter is None:
            return
        self.adapter_id += 1
        rank, alpha, dtype = self.adapter["rank"], self.adapter["alpha"], self.vllm_config.lora_config.lora_dtype
        homeless = place(self.model, self.adapter_id, rank, alpha, self._adapter, dtype)
        missing = [spec.name for spec in self.adapter_tensors if spec.name not in self._adapter]
        self.report.unwritten = sorted([*self.report.unwritten, *homeless, *missing])
        self.report.adapter_id = self.adapter_id
        self._adapter = {}

    def _incomplete(self) -> set[str]:
        """Parameters of layers that have not received all their elements: one third of a fused qkv is not a qkv."""
        names = set()
        for prefix, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            # A complete layer has been processed by now, and its info reset.
            if info.can_load() and 0 < info.load_numel < num_checkpoint_elements(layer):
                names |= {f"{prefix}.{name}" for name in layer._parameters} & self._expected
        return names

    def abort(self) -> None:
        """Give up an update that has begun: drop what layers have buffered and put their tensors back."""
        self._adapter = {}
        if self.adapter_only:
            return
        if self._is_direct:
            self.direct = None  # the loaders take the next update
            return
        with set_current_vllm_config(self.vllm_config), torch.device(self.device), plain_layers(self.model):
            for layer in self.model.modules():
                info = get_layerwise_info(layer)
                if info.can_load():
                    info.loaded_weights.clear()
                    info.load_numel = 0
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Abstract in vLLM 0.26. The learner sends with its own code, which needs no vLLM."""
        raise NotImplementedError("the learner's side of this backend is not part of vLLM")


class WorkerExtension:
    """Methods that vLLM adds to its worker, called by `collective_rpc`: what its four verbs cannot answer."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def mmr1_receive_report(self) -> dict[str, Any]:
        """What has been received, as plain lists and numbers."""
        report = self.weight_transfer_engine.report
        return {
            "fingerprints": [[name, str(digest)] for name, digest in report.fingerprints],
            "seconds": report.seconds,
        }

    def mmr1_write_report(self) -> dict[str, Any]:
        """What the finished update did to the model."""
        report = self.weight_transfer_engine.report
        return {
            "num_parameters": report.num_parameters,
            "unwritten": report.unwritten,
            "num_packed_copies_refreshed": report.num_packed_copies_refreshed,
            "adapter_id": report.adapter_id,
        }

    def mmr1_announce(self, adapter_only: bool) -> None:
        """Said before an update starts: whether it is of adapters alone."""
        self.weight_transfer_engine.adapter_only = adapter_only

    def mmr1_place_adapter(self) -> None:
        """Said after an update is finished: put the adapters in place that have come, if any."""
        self.weight_transfer_engine.place_adapter()

    def mmr1_abort_update(self) -> bool:
        """End an update whose next verb never came. False: none was under way."""
        if not self._weight_update_active:
            return False
        self._weight_update_active = False
        self.weight_transfer_engine.abort()
        self.weight_transfer_engine.shutdown()
        return True


def _specs(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in tensors)


def num_checkpoint_elements(layer: torch.nn.Module) -> int:
    """Elements of the layer's parameters that a checkpoint holds: vLLM rounds the rows of a vocabulary up."""
    num_elements = sum(tensor.numel() for tensor in layer._parameters.values() if tensor is not None)
    shard = getattr(layer, "shard_indices", None)  # of the rows that this worker has
    if shard is None:
        return num_elements
    return num_elements - int((shard.num_elements_padded - shard.num_org_elements) * layer.embedding_dim)


def refresh_packed_copies(model: torch.nn.Module) -> int:
    """Pack again what the CPU backend keeps beside `weight`; returns how many copies.

    Embeddings and the language head keep both. The layerwise reload packs a layer again when one of its checkpoint
    tensors arrives, and a tied head has none: it would keep the old copy while its `weight` reads new.
    """
    if not current_platform.is_cpu():
        return 0
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    num_copies = 0
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.ndim == 2 and weight.numel():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
            num_copies += 1
    return num_copies


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BucketEngine)

engine_failures.listen()
cpu_generator.install()
orphan_guard.guard()  # this file is the first of ours that runs in the engine's processes
