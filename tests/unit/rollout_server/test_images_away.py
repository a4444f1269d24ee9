"""The image store does not answer for a while: no prompt is dead for it, and sampling goes on by itself.

Redis and the reward app are real, as in test_worker; the store below is told how often it does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from mmr1.errors import ConfigurationError
from mmr1.image_files import MissingImageError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Group, ImageRef
from mmr1_rollout_server import worker
from mmr1_rollout_server.errors import NotServingError, PromptError
from mmr1_rollout_server.servicer import _status_of
from tests.unit.rollout_server.test_worker import Bench, reward_server, until, working

AWAY = "cannot be read from https://host/photos (503)"


class AwayStore(ImageStore):
    """Does not answer the first times that it is asked."""

    num_failures = 0

    def open(self, ref: ImageRef) -> Image.Image:
        if self.num_failures:
            self.num_failures -= 1
            raise UnreachableImageError(ref.path, AWAY)
        return super().open(ref)


@pytest.fixture
async def bench(redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(redis_url, tmp_path, reward_server())
    bench.store = AwayStore(tmp_path)
    yield bench
    await bench.redis.aclose()


async def test_a_store_that_is_away_kills_no_prompt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: more failures than a prompt may cost holders."""
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.05)
    bench.feed(0, 1, 2)
    assert isinstance(bench.store, AwayStore)
    bench.store.num_failures = 20
    await bench.serve()
    async with working(bench):
        groups: list[Group] = []
        await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == 3)
    ledger = bench.queue.ledger()
    assert ledger.dead == {} and ledger.balanced and bench.store.num_failures == 0
    assert bench.metrics.registry.get_sample_value("mmr1_rollout_prompts_total", {"end": "given_back"}) == 20


async def test_it_is_not_asked_again_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 30.0)
    bench.feed(0)
    assert isinstance(bench.store, AwayStore)
    bench.store.num_failures = 10**6
    await bench.serve()
    async with working(bench):
        name, labels = "mmr1_rollout_prompts_total", {"end": "given_back"}
        await until(lambda: bench.metrics.registry.get_sample_value(name, labels))
        bench.feed(1)
        monkeypatch.setattr(worker, "RETRY_SECONDS", 1.0)
        before = bench.store.num_failures
        with pytest.raises(TimeoutError):
            await until(lambda: bench.store.num_failures < before, 0.5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnreachableImageError("a.png", AWAY), grpc.StatusCode.UNAVAILABLE),
        (ImageError("a.png", "is not a file"), grpc.StatusCode.INVALID_ARGUMENT),
        (MissingImageError("a.png", "/data"), grpc.StatusCode.INVALID_ARGUMENT),
        (PromptError("too long"), grpc.StatusCode.INVALID_ARGUMENT),
        (NotServingError("paused"), grpc.StatusCode.UNAVAILABLE),
        (ConfigurationError("image_cache x: is no folder"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_an_evaluation_asks_again_for_what_is_away(error: Exception, status: grpc.StatusCode) -> None:
    assert _status_of(error) is status
