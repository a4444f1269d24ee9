"""Where loaders put tensors is found without moving anything, and copies made from it are the loaders' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mmr1.records import TensorSpec
from mmr1_rollout_server.destinations import Destinations, find_destinations

CPU = torch.device("cpu")


class Fused(nn.Module):
    """As vLLM fuses and cuts: q over k in one parameter, half of the columns of `o`, and one tensor as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Parameter(torch.zeros(6, 4))
        self.o = nn.Parameter(torch.zeros(4, 2))
        self.norm = nn.Parameter(torch.zeros(4))
        self.skips: str | None = None
        self.converts = False

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
        for name, tensor in weights:
            if name == self.skips:
                continue
            if name == "q":
                self.qk.data[:4].copy_(tensor)
            elif name == "k":
                self.qk.data[4:].copy_(tensor)
            elif name == "o":
                self.o.data.copy_(tensor.narrow(1, 2, 2))
            else:
                self.norm.data.copy_(tensor.double() if self.converts else tensor)
        return set()


SPECS = [TensorSpec(name, "float32", shape) for name, shape in
         (("q", (4, 4)), ("k", (2, 4)), ("o", (4, 4)), ("norm", (4,)))]  # fmt: skip


def own_elements(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer._parameters.values() if parameter is not None)


def found(model: nn.Module, specs: list[TensorSpec] = SPECS) -> Destinations | None:
    return find_destinations(model, specs, CPU, own_elements)


def test_copies_are_those_of_the_loaders() -> None:
    model, loaded = Fused(), Fused()
    destinations = found(model)
    assert destinations is not None
    assert all(not parameter.any() for parameter in model.parameters()), "finding them has changed the model"
    flat = torch.randn(sum(torch.Size(spec.shape).numel() for spec in SPECS))
    parts = flat.split([torch.Size(spec.shape).numel() for spec in SPECS])
    weights = [(spec.name, part.view(spec.shape)) for spec, part in zip(SPECS, parts, strict=True)]
    destinations.write(weights)
    loaded.load_weights(iter(weights))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


@pytest.mark.parametrize("missing", ["q", "o", "norm"])
def test_what_is_not_written_in_whole_is_refused(missing: str) -> None:
    assert found(Fused(), [spec for spec in SPECS if spec.name != missing]) is None
    model = Fused()
    model.skips = missing
    assert found(model) is None


def test_what_is_converted_on_the_way_is_refused() -> None:
    model = Fused()
    model.converts = True
    assert found(model) is None
    assert all(not parameter.any() for parameter in model.parameters()), "nothing was written meanwhile"
