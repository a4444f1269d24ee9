"""A weight update at the 3B shape from the learner's GPU to a rollout server's: seconds in phases.

    PYTHONPATH=. python benchmarks/weight_update_gpu.py     # two GPUs (NCCL) or one (CUDA's interprocess memory)
    PYTHONPATH=. python benchmarks/weight_update_gpu.py --model examples/tiny_vlm   # on a CPU too: what is not the wire

Random weights of Qwen2.5-VL-3B's shape in bfloat16, a real server with vLLM, the learner's own sender. No training, and
nothing is sampled while weights travel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import make_shape
from versions import print_versions

from mmr1.local.gpus import visible_gpus
from mmr1.local.redis_server import find_redis_server, redis_command
from mmr1_learner import weights
from mmr1_learner.parity import perturbed, towers
from tests.conftest import free_port
from tests.e2e.reference_policy import draw_images
from tests.e2e.rollout_process import WEIGHTS, RolloutServer
from tests.gpu.played_learner import PlayedLearner, kill, start_server
from tests.models import small_config


def timed(seconds: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    return measured


def measure(learner: PlayedLearner, server: RolloutServer, repeats: int) -> None:
    for repeat in range(repeats):
        seconds: dict[str, float] = {}
        client_class = weights.RolloutClient
        originals = {}
        for verb in ("start_weight_update", "update_weights", "finish_weight_update", "resume", "init_weight_transfer"):
            originals[verb] = getattr(client_class, verb)
            setattr(client_class, verb, timed(seconds, verb, originals[verb]))
        originals_send = weights.WeightSender._broadcast
        weights.WeightSender._broadcast = timed(seconds, "broadcast", originals_send)  # type: ignore[method-assign]
        learner.draw(repeat + 1, 0.01)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = learner.update(probe=False)
        seconds["update"] = time.perf_counter() - began
        for verb, original in originals.items():
            setattr(client_class, verb, original)
        weights.WeightSender._broadcast = originals_send  # type: ignore[method-assign]
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        print(json.dumps({"repeat": repeat, "gigabytes": result.num_bytes / 1e9, **rounded}), flush=True)
    told = [line for line in server.log.read_text().splitlines() if "weights_received" in line or "event=state" in line]
    print("\n".join(told[-4 * repeats :]), flush=True)  # closed, received, in place, open: of each update


def parity(learner: PlayedLearner) -> None:
    """How far the two engines are apart at this shape, and what a planted change makes of it."""
    client = learner.sender.clients()[0]
    groups = learner.ask(client, 6, tokens=32)
    found = {"as sent": learner.gap(groups)}
    for tower in towers(learner.published):
        with perturbed(learner.published, tower):
            found[f"planted in {tower}"] = learner.gap(groups)
    for name, report in found.items():
        print(json.dumps({"parity": name, "mean": report.mean_abs_dlogp, "max": report.max_abs_dlogp,
                          "mismatch_kl": report.mismatch_kl}), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bucket", type=int, nargs="+", default=[2**28])
    parser.add_argument("--model", type=Path, help="a folder; without it the 3B shape is made")
    options = parser.parse_args()
    gpus = visible_gpus(os.environ) or [""]
    print_versions(**vars(options))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or folder / "model"
        began = time.perf_counter()
        if not options.model:
            make_shape(model)
            torch.cuda.empty_cache()
        images = draw_images(folder / "images", 3, side=112 if options.model else 448)
        port = free_port()
        redis = subprocess.Popen(redis_command(find_redis_server(), port, folder), stdout=subprocess.DEVNULL)
        given: dict[str, Any] = {
            "run": "shape",
            "model": str(model),
            "dtype": "bfloat16",
            "train_file": str(images.root / "train.json"),
            "num_steps": 1,
            "max_prompt_length": 1024,
            "max_completion_length": 64,
            "redis_url": f"redis://127.0.0.1:{port}/0",
            "gpu_memory_utilization": 0.45,
        }
        place = gpus[min(1, len(gpus) - 1)]
        server = start_server(folder, 0, place, **given, per_device_batch_size=8, num_generations=4)
        try:
            device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
            learner = PlayedLearner(small_config(**{**given, "model": model}), images, device)
            server.wait_healthy(WEIGHTS, 280.0)
            print(f"ready after {time.perf_counter() - began:.0f} s", flush=True)
            for bucket in options.bucket:
                learner.sender._config = learner.config.model_copy(update={"weight_bucket_bytes": bucket})
                learner.sender.close()
                learner.sender._leave()
                print(f"buckets of {bucket / 2**20:g} MiB", flush=True)
                measure(learner, server, options.repeats)
            parity(learner)
            learner.sender.close()
        finally:
            print(server.log.read_text()[-3000:], flush=True)
            kill(server)
            redis.kill()


if __name__ == "__main__":
    main()
