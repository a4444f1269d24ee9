"""Where loaders put tensors is found without moving anything, and copies made from it are the loaders' own.

What the found places are must be whole: nothing twice, no hole, and nothing outside the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mmr1.records import TensorSpec
from mmr1_rollout_server.destinations import Destinations, find_destinations, num_covered

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


def test_an_overlap_and_a_hole_do_not_cancel() -> None:
    class Shifted(Fused):
        """q has the rows 2 to 5 instead of 0 to 3: as many elements as before, but twice rows 4 and 5."""

        def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
            for name, tensor in weights:
                if name == "q":
                    self.qk.data[2:].copy_(tensor)
                else:
                    super().load_weights(iter([(name, tensor)]))
            return set()

    assert found(Shifted()) is None


def test_what_is_no_parameter_is_refused() -> None:
    class Buffered(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
            for name, tensor in weights:
                if name == "mean":
                    self.mean.data.copy_(tensor)
                else:
                    super().load_weights(iter([(name, tensor)]))
            return set()

    assert found(Buffered(), [*SPECS, TensorSpec("mean", "float32", (4,))]) is None


def test_coverage_is_exact() -> None:
    parameter = torch.zeros(4, 6)
    rows, columns = parameter.split(2), parameter.split(3, dim=1)
    assert num_covered(parameter, rows) == 24
    assert num_covered(parameter, rows[:1]) == 12, "rows that a checkpoint does not have are at the end"
    assert num_covered(parameter, columns) == 24
    for pieces in ([rows[1]], [rows[0], rows[0]], [parameter[:3], parameter[2:]], [columns[0]], [columns[0]] * 2,
                   [columns[0], columns[1], rows[0]], [parameter[:, :4], parameter[:, 3:]]):  # fmt: skip
        with pytest.raises(ValueError, match="overlap, or leave a hole"):
            num_covered(parameter, pieces)
    with pytest.raises(ValueError, match="one piece"):
        num_covered(parameter.t(), [])
