"""Weight updates of real servers on GPUs: each engine then computes the learner's model, in bfloat16 within a bound.

Over CUDA's interprocess memory two servers share the learner's GPU; over NCCL each has its own; `cut` is one server
whose engine cuts the model over two GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mmr1.data_cli import main as data_main
from mmr1_learner.model import load_policy
from mmr1_learner.parity import ParityError, Scorer, gate_of, narrowed, perturbed, towers
from mmr1_learner.published import Published
from tests.conftest import REPOSITORY
from tests.e2e.reference_policy import draw_images
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.gpu.conftest import GPUS
from tests.gpu.played_learner import PlayedLearner, kill, start_server
from tests.models import small_config

pytestmark = pytest.mark.timeout(400)
MODEL = REPOSITORY / "examples" / "tiny_vlm"
FAR = 5.0  # times the bound: what unchanged weights would show after a drawn change
WAYS = [
    pytest.param("ipc"),
    pytest.param("nccl", marks=pytest.mark.gpus(3)),
    pytest.param("cut", marks=pytest.mark.gpus(3)),
]


@dataclass
class World:
    way: str
    learner: PlayedLearner
    servers: list[RolloutServer]


@pytest.fixture(scope="module", params=WAYS)
def world(
    request: pytest.FixtureRequest, redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    way = request.param
    images = draw_images(tmp_path_factory.mktemp("images"), 3)  # and digits, of which a run would learn, beside them
    count = ["--num-train", "32", "--num-eval", "8"]
    assert data_main(["digits", "--task", "counting", "--out", str(images.root), *count]) == 0
    options: dict[str, Any] = {
        "run": f"gpu-{way}",
        "model": str(MODEL),
        "dtype": "bfloat16",
        "train_file": str(images.root / "train.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_prompt_length": 512,
        "max_completion_length": 64,
        "redis_url": redis_server,
        "gpu_memory_utilization": 0.3,
        "weight_bucket_bytes": 2**20,  # several, of a model of a few megabytes
        "weight_update_deadline_seconds": 20.0,
        "lease_seconds": 5.0,
        "rollout_tensor_parallel_size": 2 if way == "cut" else 1,
    }
    places = {"ipc": [GPUS[0]] * 2, "nccl": GPUS[1:3], "cut": [",".join(GPUS[1:3])]}[way]
    folder = tmp_path_factory.mktemp("servers")
    servers: list[RolloutServer] = []
    try:
        config = small_config(**{**options, "model": MODEL})
        learner = PlayedLearner(config, images, torch.device("cuda:0"))
        for index, place in enumerate(places):
            servers.append(start_server(folder, index, place, **options))
            if way == "ipc":  # engines that load on one GPU at once take each other's memory for their own
                servers[-1].wait_healthy(WEIGHTS, 180.0)
        for server in servers:
            server.wait_healthy(WEIGHTS, 180.0)
        yield World(way, learner, servers)
        learner.sender.close()
    finally:
        for server in servers:
            print(f"\n--- {server.log}\n{server.log.read_text()[-3000:]}")
            if server.process.poll() is None:
                kill(server)


def test_the_engine_has_each_version(world: World, record: Callable[..., None]) -> None:
    learner = world.learner
    first = learner.update()
    before = learner.ask(learner.sender.clients()[0], 6)
    seconds, gaps, apart = [first.seconds], [], []
    bound = learner.config.bound("bfloat16")
    for seed in range(1, 5):
        learner.draw(seed, 0.2)
        apart.append(learner.gap(before).mean_abs_dlogp)
        seconds.append(learner.update().seconds)
        gaps.append(max(learner.gap(learner.ask(client, 6)).mean_abs_dlogp for client in learner.sender.clients()))
        before = learner.ask(learner.sender.clients()[0], 6)
    record(way=world.way, seconds=seconds, gaps=gaps, apart_without_the_update=apart)
    assert max(gaps) < bound
    assert min(apart) > FAR * max(gaps), "the drawn change says nothing"
    learner.draw(0, 0.0)
    learner.update()


def test_parity_in_bfloat16(world: World, record: Callable[..., None]) -> None:
    """The gap of the two engines, of each to float32, and what a planted change makes of it."""
    learner = world.learner
    learner.draw(0, 0.0)
    learner.update()
    groups = learner.ask(learner.sender.clients()[0], 16, tokens=32)
    figures = {"bfloat16": learner.gap(groups)}
    exact_config = learner.config.model_copy(update={"dtype": "float32"})
    exact = load_policy(str(MODEL), exact_config).to(learner.device).eval()
    published = Published(exact, learner.ranks, learner.config.weight_bucket_bytes)
    figures["float32"] = Scorer(exact_config, published, learner.encoder, learner.device).compare(groups)
    for tower in towers(learner.published):
        with perturbed(learner.published, tower):
            figures[f"planted in {tower}"] = learner.gap(groups)
    record(
        way=world.way,
        **{name: [one.mean_abs_dlogp, one.max_abs_dlogp, one.mismatch_kl] for name, one in figures.items()},
    )
    gap = figures["bfloat16"].mean_abs_dlogp
    vision, language = (figures[f"planted in {tower}"].mean_abs_dlogp for tower in towers(learner.published))
    bound = narrowed(learner.config.bound("bfloat16"), gap)
    assert gap < bound < language
    assert vision < bound, "of images of noise the small model says little: no run may rest on them"
    with pytest.raises(ParityError, match=r"a planted change of model\.visual"):
        gate_of(learner.config, learner.scorer, learner.published, groups)


def test_the_gate_in_bfloat16_sees_planted_changes_of_both_towers(world: World, record: Callable[..., None]) -> None:
    """Of the images and the prompts that a run has: there it lets the run begin, and that proves that it saw them."""
    learner = world.learner
    learner.draw(0, 0.0)
    learner.update()
    groups = learner.ask_problems(learner.sender.clients()[0], learner.config.parity_prompts, tokens=12)
    report, bound = gate_of(learner.config, learner.scorer, learner.published, groups)
    planted = {}
    for tower in towers(learner.published):
        with perturbed(learner.published, tower):
            planted[tower] = learner.gap(groups).mean_abs_dlogp
    record(way=world.way, gap=report.mean_abs_dlogp, bound=bound, planted=planted)
    assert report.mean_abs_dlogp < bound < min(planted.values())


def test_a_server_killed_in_the_middle_of_a_broadcast(
    world: World, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
) -> None:
    """Last: it costs one server. The other has the next version long before the deadline of a phase."""
    if len(world.servers) < 2:
        pytest.skip("one server alone")
    learner = world.learner
    learner.draw(7, 0.2)
    learner.update()
    collective = learner.sender._collective
    assert collective is not None
    send, calls, killed = collective.send, [], []

    def send_and_kill(buffer: torch.Tensor) -> None:
        calls.append(buffer.numel())
        if len(calls) == 2:
            kill(world.servers[1])
            killed.append(time.monotonic())
        send(buffer)

    monkeypatch.setattr(collective, "send", send_and_kill)
    learner.draw(8, 0.2)
    result = learner.update()
    took = time.monotonic() - killed[0]
    record(way=world.way, seconds_from_kill_to_commit=took, deadline=learner.config.weight_update_deadline_seconds)
    assert result.num_servers == 1
    assert took < 15.0
    gap = learner.gap(learner.ask(learner.sender.clients()[0], 6)).mean_abs_dlogp
    assert gap < learner.config.bound("bfloat16")
