"""What a machine's own memory must hold of the learner; of vLLM's processes and of images it knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

from mmr1.capacity.learner import Learner
from mmr1.capacity.measured import Gpu
from mmr1.capacity.work import Work


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of the machine that holds rank 0 and as many others as it has GPUs for."""

    starting: float  # while ranks have loaded the model and not yet passed it to their GPUs
    running: float  # of the whole weights that are sent


def host_memory(work: Work, gpu: Gpu, learner: Learner) -> HostMemory:
    """Ranks load the whole model each. At ZeRO-3 rank 0 alone does, and with it the reference that is copied from it.

    Without ZeRO-3 the reference is copied on the GPU. What is kept is pinned; if that takes more than the tensors' own
    size, it is not counted.
    """
    cut = learner.zero_stage == 3
    ranks = 1 if cut else min(learner.num_ranks, gpu.per_node)
    reference = work.with_reference and work.trains_all and cut
    keeps = cut or not (work.trains_all or work.sends_adapters)
    return HostMemory(ranks * (1 + reference) * work.weight_bytes, keeps * work.weight_bytes)
