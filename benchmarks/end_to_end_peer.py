"""The peer of `end_to_end_gpu.py`: TRL's GRPOTrainer on one GPU with a vLLM server on another, on the same problems.

    python benchmarks/end_to_end_peer.py --model FOLDER --data FOLDER/train.json --gpus 0,1 --groups 8 \
        --runs rows=16,checkpointing=1,liger=0 rows=4,checkpointing=0,liger=1

Needs trl 1.16, datasets and vLLM with its development endpoints. Each run starts server and trainer anew and prints
one JSON line a step; the first step is the warm-up.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

NUM_GENERATIONS, TOKENS = 8, 64
SERVER_SECONDS, TRAINER_SECONDS = 240.0, 330.0
SERVER_OPTIONS = {
    "--dtype": "bfloat16",
    "--max-model-len": "2048",
    "--max-num-seqs": "512",
    "--gpu-memory-utilization": "0.8",
    "--limit-mm-per-prompt": '{"image":1,"video":0}',
    "--weight-transfer-config": '{"backend":"nccl"}',
    "--logprobs-mode": "processed_logprobs",
    "--max-logprobs": "-1",
}
ALLOWED_TOKENS = list(range(400, 700))  # words; neither the end nor an image's placeholder


def port_from(base: int) -> int:
    return base + os.getpid() % 500


def start_server(model: Path, gpu: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    for name, value in SERVER_OPTIONS.items():
        command += [name, value]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "VLLM_SERVER_DEV_MODE": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def wait_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the peer's server did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.5)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With its children; whoever is gone already is gone."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(30)


def run(given: argparse.Namespace, options: str, folder: Path) -> None:
    trainer_gpu, server_gpu = given.gpus.split(",")
    port, log = port_from(18_700), folder / "server.log"
    server = start_server(given.model, server_gpu, port, log)
    try:
        wait_healthy(server, port, log)
        command = [
            sys.executable,
            __file__,
            "--model",
            str(given.model),
            "--data",
            str(given.data),
            "--port",
            str(port),
        ]
        command += ["--groups", str(given.groups), "--steps", str(given.steps), "--train", options]
        trainer = subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": trainer_gpu}, cwd=folder)
        try:
            trainer.wait(TRAINER_SECONDS)
        finally:
            kill(trainer)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"peer {options}: {error}", flush=True)
    finally:
        kill(server)
        if out := os.environ.get("OUT"):
            Path(out, "peer-server.log").write_text(log.read_text()[-100_000:])


def rewards(completions: list[Any], **_: Any) -> list[float]:
    """Different ones within a group, and no work: ours are scored by its reward server."""
    return [float(index % 3) for index in range(len(completions))]


def train(given: argparse.Namespace, options: dict[str, int]) -> None:
    """In a process of its own. Its model is in bfloat16 with bfloat16 moments: no master weights."""
    from datasets import Dataset, Image
    from trl import GRPOTrainer

    rows = json.loads(given.data.read_text())
    problems = [[{"role": "user", "content": row["problem"]}] for row in rows]
    images = [str(given.data.parent / row["image"]) for row in rows]
    dataset = Dataset.from_dict({"prompt": problems, "image": images}).cast_column("image", Image())
    trainer = GRPOTrainer(
        model=str(given.model), reward_funcs=[rewards], args=peer_arguments(given, options), train_dataset=dataset
    )
    parts: dict[str, float] = collections.defaultdict(float)
    for place, name, part in (
        (trainer.vllm_generation, "generate", "generate"),
        (trainer.vllm_generation, "sync_weights", "weight_update"),
        (trainer, "_get_per_token_logps_and_entropies", "log_probabilities"),
        (trainer.accelerator, "backward", "backward"),
    ):
        setattr(place, name, timed(getattr(place, name), part, parts))
    trainer.add_callback(watch(given, parts))
    trainer.train()


def peer_arguments(given: argparse.Namespace, options: dict[str, int]) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir="trl_out",
        per_device_train_batch_size=options["rows"],
        gradient_accumulation_steps=given.groups * NUM_GENERATIONS // options["rows"],
        num_generations=NUM_GENERATIONS,
        max_completion_length=TOKENS,
        max_steps=options.get("steps", given.steps),
        logging_steps=1,
        bf16=True,
        gradient_checkpointing=bool(options["checkpointing"]),
        use_liger_kernel=bool(options["liger"]),
        learning_rate=1e-6,
        beta=0.0,
        report_to=[],
        save_strategy="no",
        temperature=1.0,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=f"http://127.0.0.1:{given.port}",
        vllm_server_timeout=240,
        vllm_group_port=port_from(19_300),
        generation_kwargs={"min_tokens": TOKENS, "allowed_token_ids": ALLOWED_TOKENS},
        model_init_kwargs={"dtype": "bfloat16"},
        optim="adamw_torch_fused",
        dataloader_num_workers=0,
    )


def watch(given: argparse.Namespace, parts: dict[str, float]) -> Any:
    """Prints each step's seconds as a callback of the trainer's."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            self.began = time.perf_counter()
            parts.clear()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            torch.cuda.synchronize()
            seconds = time.perf_counter() - self.began
            line = {
                "peer": given.train,
                "step": state.global_step,
                "seconds": round(seconds, 2),
                "groups_an_hour": round(3600 * given.groups / seconds),
                **{part: round(spent, 2) for part, spent in parts.items()},
                "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
            }
            print(json.dumps(line), flush=True)

    return Watch()


def timed(call: Callable[..., Any], part: str, parts: dict[str, float]) -> Callable[..., Any]:
    import torch

    def measured(*arguments: Any, **named: Any) -> Any:
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = call(*arguments, **named)
        torch.cuda.synchronize()
        parts[part] += time.perf_counter() - began
        return result

    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gpus", default="0,1", help="the trainer's and the server's")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="where a run has no steps= of its own")
    parser.add_argument("--runs", nargs="+", default=["rows=16,checkpointing=1,liger=0"])
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given, {name: int(value) for name, value in (pair.split("=") for pair in given.train.split(","))})
        return
    with tempfile.TemporaryDirectory() as folder:
        for options in given.runs:
            run(given, options, Path(folder))


if __name__ == "__main__":
    main()
