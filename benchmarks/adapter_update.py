"""What it costs to bring a rollout server to a new version: merged weights against adapters alone, and sampling after.

    PYTHONPATH=. python benchmarks/adapter_update.py --repeats 5      # a redis-server in PATH, two minutes

One real server holds a randomly initialised Qwen2.5-VL of some fifty million parameters and is updated turn by turn in
both ways, over gloo on one machine, each update with its probe. Then both kinds of version are sampled from. Absolute
numbers are this machine's; only ratios within one run mean anything elsewhere. It measures no training.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from mmr1.config import RunConfig
from mmr1.records import Group, Sampling
from mmr1.rollout_client import RolloutClient
from mmr1_learner import tiny_model
from mmr1_learner.published import Published
from mmr1_learner.weights import WeightSender
from tests.e2e.adapter_learner import RANKS, AdapterLearner, adapter_options
from tests.e2e.reference_policy import VISION_TOKENS, draw_images, image_prompt
from tests.e2e.rollout_process import WEIGHTS, RolloutServer

RUN = "adapter-benchmark"
HIDDEN, LAYERS = 512, 12
BOUND = 1e-3  # of mean |delta log p|: that of a run in float32
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build(folder: Path) -> None:
    """The demonstration's architecture, larger."""
    tiny_model.build(folder)
    config: Any = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = HIDDEN, 4 * HIDDEN, LAYERS
    text.num_attention_heads, text.num_key_value_heads = HIDDEN // 32, HIDDEN // 64
    text.layer_types = ["full_attention"] * LAYERS
    vision.out_hidden_size = HIDDEN
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def compare(folder: Path, url: str, repeats: int) -> None:
    images = draw_images(folder / "images", 1)
    options: dict[str, Any] = {
        "run": RUN,
        "model": str(folder / "model"),
        "train_file": str(images.root / "train.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 8,
        "max_prompt_length": 512,
        "max_completion_length": 64,
        "redis_url": url,
        **adapter_options(*MODULES),
        "lora_rank": 8,
    }
    server = RolloutServer(folder, **options)
    learner: AdapterLearner
    sampling = Sampling(1.0, 64, ignore_eos=True)

    def sample(client: RolloutClient, probe: bool) -> list[Group]:
        short = replace(sampling, max_completion_length=4)  # a probe that costs little beside its update
        asked = image_prompt(images, 0, short if probe else sampling, run=RUN, num_generations=2 if probe else 8)
        return [client.generate(asked, timeout=120, probe=probe)]

    try:
        learner = AdapterLearner(RunConfig(**options), url, sample, BOUND)
        forbidden = learner.encoder.processor.tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
        sampling = Sampling(1.0, 64, forbidden_token_ids=tuple(forbidden), ignore_eos=True)
        server.wait_healthy(WEIGHTS)
        whole = Published(learner.published.policy, RANKS, learner.config.weight_bucket_bytes)
        merged = WeightSender(learner.config, learner.queue, whole, "127.0.0.1")
        _report("merged", *_measured(learner, merged, whole.refresh, repeats))
        _report("adapter", *_measured(learner, learner.sender, learner.published.refresh, repeats))
        merged.close()
        learner.sender.close()
    finally:
        server.terminate()


def _measured(learner: AdapterLearner, sender: WeightSender, refresh: Any, repeats: int) -> tuple[int, Any, Any, Any]:
    """Bytes of an update; seconds of what comes before it, of itself, and of 8 x 64 tokens sampled after it."""
    refresh()
    learner.update(sender)  # forms the group
    prepared, sent, sampled, num_bytes = [], [], [], 0
    for seed in range(repeats):
        learner.draw(seed)
        begun = time.monotonic()
        refresh()
        prepared.append(time.monotonic() - begun)
        result = learner.update(sender)
        sent.append(result.seconds)
        num_bytes = result.num_bytes
        begun = time.monotonic()
        learner.sample(sender.clients()[0], False)
        sampled.append(time.monotonic() - begun)
    return num_bytes, prepared, sent, sampled


def _report(name: str, num_bytes: int, prepared: list[float], sent: list[float], sampled: list[float]) -> None:
    figures = [f"{statistics.median(seconds):.2f} s" for seconds in (prepared, sent, sampled)]
    print(f"{name:8} {num_bytes / 1e6:8.2f} MB   put together {figures[0]}   update and probe {figures[1]}   ", end="")
    print(f"512 tokens {figures[2]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as url:
        folder = Path(name)
        build(folder / "model")
        compare(folder, url, arguments.repeats)


if __name__ == "__main__":
    main()
