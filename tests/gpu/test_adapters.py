"""Adapters sent alone to a real server on a GPU, in bfloat16: each version that it samples with is the learner's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmr1.records import Group, Sampling
from mmr1.rollout_client import RolloutClient
from tests.conftest import REPOSITORY
from tests.e2e.adapter_learner import AdapterLearner, adapter_options
from tests.e2e.reference_policy import draw_images, image_prompt
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.gpu.conftest import GPUS
from tests.gpu.played_learner import kill, start_server
from tests.models import small_config

pytestmark = pytest.mark.timeout(300)
MODEL = REPOSITORY / "examples" / "tiny_vlm"
FAR = 5.0  # times the gap: what unchanged adapters would show after others were drawn
DRAWN = 0.3  # of the numbers in B


@pytest.fixture(params=["ipc", pytest.param("nccl", marks=pytest.mark.gpus(2))])
def way(request: pytest.FixtureRequest) -> str:
    """Over CUDA's interprocess memory the server shares the learner's GPU; over NCCL it has its own."""
    return str(request.param)


@pytest.fixture
def learner(way: str, redis_server: str, tmp_path: Path) -> Iterator[AdapterLearner]:
    place = GPUS[{"ipc": 0, "nccl": 1}[way]]
    yield from serve(f"adapters-{way}", place, torch.device("cuda:0"), "bfloat16", redis_server, tmp_path)


def serve(
    run: str, place: str, device: torch.device, dtype: str, redis_url: str, folder: Path
) -> Iterator[AdapterLearner]:
    images, data = draw_images(folder, 3), str(folder / "train.json")
    options: dict[str, Any] = {
        "run": run,
        "model": str(MODEL),
        "dtype": dtype,
        "train_file": data,
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_prompt_length": 512,
        "max_completion_length": 32,
        "redis_url": redis_url,
        "gpu_memory_utilization": 0.3,
        "weight_bucket_bytes": 2**20,
        "lease_seconds": 5.0,
        **adapter_options("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"),
    }
    server: RolloutServer | None = None
    try:
        config = small_config(**{**options, "model": MODEL})

        def sample(client: RolloutClient, probe: bool) -> list[Group]:
            # The same images again after each update, so that caches of before it would answer.
            sampling = Sampling(1.0, 12, forbidden_token_ids=played.encoder.forbidden_token_ids, ignore_eos=True)
            prompts = [image_prompt(images, index % 3, sampling, run=run) for index in range(6)]
            return client.generate_many(prompts, timeout=120, probe=probe)

        played = AdapterLearner(config, redis_url, sample, config.bound(dtype), device)
        server = start_server(folder, 0, place, **options)
        server.wait_healthy(WEIGHTS, 180.0)
        yield played
        played.sender.close()
    finally:
        if server is not None:
            print(f"\n--- {server.log}\n{server.log.read_text()[-3000:]}")
            if server.process.poll() is None:
                kill(server)


def test_the_engine_samples_with_each_versions_adapters(
    way: str, learner: AdapterLearner, record: Callable[..., None]
) -> None:
    follow(learner, 4, record, way=way)


def follow(learner: AdapterLearner, num_versions: int, record: Callable[..., None], **about: Any) -> None:
    """Version after version, each of other adapters; the base model is sent once."""
    first = learner.update()
    before = learner.sample(learner.client(), False)
    gaps, apart, seconds, sizes = [], [], [first.seconds], [first.num_bytes]
    for seed in range(1, num_versions + 1):
        learner.draw(seed, DRAWN)
        apart.append(learner.scorer.compare(before).mean_abs_dlogp)
        result = learner.update()
        before = learner.sample(learner.client(), False)
        gaps.append(learner.scorer.compare(before).mean_abs_dlogp)
        seconds.append(result.seconds)
        sizes.append(result.num_bytes)
    record(**about, gaps=gaps, apart_without_the_update=apart, seconds=seconds, bytes=sizes)
    assert max(gaps) < learner.bound
    assert min(apart) > FAR * max(gaps), "the drawn adapters say nothing"
    assert len(set(sizes[1:])) == 1 and sizes[1] < sizes[0] / 10, "adapters alone, after the first"
