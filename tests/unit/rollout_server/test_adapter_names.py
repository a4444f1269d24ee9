"""An adapter's names are mapped by vLLM's renames and not by its fusing of layers, whatever the version calls that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.models.utils import WeightsMapper

from mmr1_rollout_server.adapter_loading import renames_alone

MAPPER = WeightsMapper(
    orig_to_new_prefix={"model.language_model.": "language_model.model."},
    orig_to_new_stacked={".q_proj": (".qkv_proj", "q")},
)
OURS = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
THEIRS = "language_model.model.layers.0.self_attn.q_proj"


@dataclass
class OfOlderVersion:
    """As vLLM 0.26 has it, where the method has another name."""

    mapper: WeightsMapper = field(default_factory=lambda: MAPPER)

    def get_unstacked_mapper(self) -> WeightsMapper:
        return replace(self.mapper, orig_to_new_stacked={})


@pytest.mark.parametrize("mapper", [MAPPER, OfOlderVersion()], ids=["installed", "0.26"])
def test_parts_of_fused_layers_keep_their_names(mapper: object) -> None:
    assert parse_fine_tuned_lora_name(OURS, MAPPER)[0] != THEIRS, "the mapper as it is would fuse them"
    assert parse_fine_tuned_lora_name(OURS, renames_alone(mapper)) == (THEIRS, True)


def test_a_model_without_a_mapper_has_none() -> None:
    assert renames_alone(None) is None
