"""Updates straight to known destinations: what was not written as it should be is found, by account or by reading back.

The first half is the account and the proof alone; the second is vLLM's worker's own weight transfer engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmr1_rollout_server import direct
from mmr1_rollout_server.arriving import Arriving, Weights
from mmr1_rollout_server.destinations import Destinations
from mmr1_rollout_server.direct import DirectUpdates
from tests.unit.rollout_server.test_destinations import SPECS, Fused, found

TENSORS = tuple(SPECS)
BUCKET_BYTES = 100  # q and k together, the others one each


class Given:
    """A transfer group whose learner has drawn the weights."""

    device = torch.device("cpu")
    num_ahead = 0

    def __init__(self) -> None:
        self._posted: list[Tensor] = []

    def post(self, buffer: Tensor, deadline_seconds: float) -> None:
        self._posted.append(buffer)

    def take(self, deadline_seconds: float) -> Tensor:
        buffer = self._posted.pop(0)
        buffer.copy_(torch.randn(buffer.numel() // 4).view(torch.uint8))
        return buffer

    def close(self) -> None:
        pass


def updates(model: nn.Module) -> DirectUpdates:
    destinations = found(model)
    assert destinations is not None
    return DirectUpdates(destinations, TENSORS)


def update(updates: DirectUpdates) -> list[str]:
    arriving = Arriving(Given(), BUCKET_BYTES, 1e12, views=True)
    updates.begin(BUCKET_BYTES)
    for weights in arriving.weights(TENSORS):
        updates.write(weights)
    return updates.finish(arriving.fingerprints())


def test_whole_updates_are_accounted_and_proved() -> None:
    model = Fused()
    direct_updates = updates(model)
    for _ in range(3):
        assert update(direct_updates) == []
    assert all(parameter.all() for parameter in model.parameters())


def test_a_write_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    direct_updates = updates(Fused())
    monkeypatch.setattr(Destinations, "write", lambda self, weights: None)
    assert update(direct_updates) == ["norm", "o", "qk"]


@pytest.mark.parametrize("times", [0, 2])
@pytest.mark.parametrize(("tensor", "parameter"), [("q", "qk"), ("o", "o")])
def test_a_copy_left_out_or_made_twice(tensor: str, parameter: str, times: int) -> None:
    direct_updates = updates(Fused())
    direct_updates.destinations.copies[tensor] *= times
    assert update(direct_updates) == [parameter]


def test_one_update_does_not_account_for_the_next() -> None:
    direct_updates = updates(Fused())
    assert update(direct_updates) == []
    del direct_updates.destinations.copies["k"][:]
    assert update(direct_updates) == ["qk"]


def without(index: int) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """torch's grouped copy, which forgets one of each group."""

    def copy(places: Sequence[Tensor], pieces: Sequence[Tensor]) -> None:
        for number, (place, piece) in enumerate(zip(places, pieces, strict=True)):
            if number != index:
                place.copy_(piece)

    return copy


@pytest.mark.parametrize(("index", "name"), [(1, "k"), (0, "q")])
def test_a_parameter_is_read_back(index: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is right, and the parameter is not."""
    direct_updates = updates(Fused())
    write = Destinations.write

    def faulty(self: Destinations, weights: Weights) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_foreach_copy_", without(index))
            write(self, weights)

    monkeypatch.setattr(Destinations, "write", faulty)
    with pytest.raises(RuntimeError, match=f"do not hold {name} as it was received"):
        update(direct_updates)


def test_a_part_of_a_tensor_is_read_back() -> None:
    """Of `o` this worker keeps half of the columns, of which a later write spoils one number."""
    model = Fused()
    direct_updates = updates(model)
    arriving = Arriving(Given(), BUCKET_BYTES, 1e12, views=True)
    direct_updates.begin(BUCKET_BYTES)
    for weights in arriving.weights(TENSORS):
        direct_updates.write(weights)
    model.o.data[3, 1] += 1
    with pytest.raises(RuntimeError, match="do not hold o as it was received"):
        direct_updates.finish(arriving.fingerprints())


def test_reading_back_comes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "PROVE_EVERY", 3)
    proved: list[bool] = []
    direct_updates = updates(Fused())
    monkeypatch.setattr(direct_updates, "_prove", lambda received: proved.append(True))
    counts = []
    for _ in range(7):
        update(direct_updates)
        counts.append(len(proved))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


def _new_storage(model: Fused) -> None:
    model.qk.data = model.qk.data.clone()


def _new_parameter(model: Fused) -> None:
    model.norm = nn.Parameter(model.norm.detach().clone())


def _one_more(model: Fused) -> None:
    model.more = nn.Parameter(torch.zeros(1))


def _other_strides(model: Fused) -> None:
    model.o.data = model.o.data.as_strided((4, 2), (1, 4))


@pytest.mark.parametrize("change", [_new_storage, _new_parameter, _one_more, _other_strides])
def test_what_is_no_longer_the_engines_is_not_written_to(change: Callable[[Fused], None]) -> None:
    model = Fused()
    direct_updates = updates(model)
    assert direct_updates.fit(dict(model.named_parameters()), TENSORS)
    assert not direct_updates.fit(dict(model.named_parameters()), TENSORS[:-1]), "another manifest"
    change(model)
    assert not direct_updates.fit(dict(model.named_parameters()), TENSORS)


# -- the weight transfer engine ------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's side of an update, of a model that is loaded plainly: the loaders are the model's own."""
    weight_transfer = pytest.importorskip("mmr1_rollout_server.weight_transfer")
    from vllm.config import VllmConfig
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    engine = object.__new__(weight_transfer.BucketEngine)
    engine.vllm_config, engine.model_config = VllmConfig(), None
    engine.model, engine.device = Fused(), torch.device("cpu")
    engine.tensors, engine.bucket_bytes, engine.group = TENSORS, BUCKET_BYTES, Given()
    with torch.device("cpu"):
        record_metadata_for_reloading(engine.model)
    engine.direct = updates(engine.model)
    yield engine


def run(engine: Any) -> list[str]:
    from mmr1_rollout_server.weight_transfer import UpdateInfo

    engine.start_weight_update()
    engine.receive_weights(UpdateInfo(deadline_seconds=60.0))
    engine.finish_weight_update()
    return list(engine.report.unwritten)


def test_the_engine_reports_what_a_direct_update_left_out(engine: Any) -> None:
    known = engine.direct
    assert run(engine) == []
    assert engine.direct is known
    del known.destinations.copies["q"][:]
    assert run(engine) == ["qk"]
    assert engine.direct is None, "the loaders take the next update"


def test_the_engine_takes_the_loaders_when_a_parameter_has_moved(engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine.model.qk.data = engine.model.qk.data.clone()
    engine.start_weight_update()
    assert engine.direct is None
    assert not engine._is_direct
    assert engine.model.qk.is_meta, "layers are made ready for vLLM's loaders"
    assert "goes through vLLM's loaders" in caplog.text
    engine.abort()
