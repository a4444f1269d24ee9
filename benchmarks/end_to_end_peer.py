"""The peer of `end_to_end_gpu.py`: TRL's GRPOTrainer on one GPU with a vLLM server on another, on the same problems.

    python benchmarks/end_to_end_peer.py --model FOLDER --data FOLDER/train.json --gpus 0,1 --groups 8 \
        --runs rows=16,checkpointing=1,liger=1,steps=2 rows=16,checkpointing=1,liger=1,steps=2,windows=1,is=0

Needs trl 1.16, datasets and vLLM with its development endpoints. A run is its settings, each with a default:

    rows=16           completions in a forward (per_device_train_batch_size)
    checkpointing=1   gradient_checkpointing
    liger=0           use_liger_kernel
    steps             how many; without it, --steps
    windows=0         1: this project's batched attention in the vision tower. TRL ships transformers', which calls
                      sdpa once for each window of an image: most of its time.
    is                vllm_importance_sampling_correction. TRL ships 1, which takes a pass of log-probabilities before
                      the first update; 0 leaves that pass out. `log_probabilities` counts both passes.

Runs follow each other, each with a trainer of its own, and print one JSON line a step; the first step is the warm-up.
The server starts once: a trainer forms its own group with it and sends all its weights before it samples, and every run
has problems of its own, so that nothing is cached for it. It starts anew where problems run out, after a run that
failed, and for a second try of one that failed on a server that had served others.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
SETTINGS = {"rows": 16, "checkpointing": 1, "liger": 0, "steps": None, "windows": 0, "is": None}  # None: see above
LEARNER = Path(__file__).resolve().parents[1] / "learner"
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


def settings(text: str, steps: int) -> dict[str, Any]:
    """Of one run: `name=number,...`. `steps` are those of a run that does not say how many."""
    given = dict(pair.partition("=")[::2] for pair in text.split(","))
    for name, value in given.items():
        if name not in SETTINGS or not value.isdigit():
            raise SystemExit(f"end_to_end_peer: error: {name}={value} in {text}; settings are {', '.join(SETTINGS)}")
    found = {**SETTINGS, **{name: int(value) for name, value in given.items()}}
    return {**found, "steps": found["steps"] or steps}


@dataclass
class Server:
    """The peer's vLLM, kept from run to run. `used` of the problems were seen by the one that is up."""

    model: Path
    gpu: str
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    used: int = 0

    def ready(self) -> None:
        """Raises RuntimeError: it did not start."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = start_server(self.model, self.gpu, self.port, self.log)
            wait_healthy(self.process, self.port, self.log)

    def stop(self) -> None:
        if self.process is not None:
            kill(self.process)
            if out := os.environ.get("OUT"):
                Path(out, "peer-server.log").write_text(self.log.read_text()[-100_000:])
        self.process, self.used = None, 0


@contextmanager
def server_of(given: argparse.Namespace, folder: Path) -> Iterator[Server]:
    server = Server(given.model, given.gpus.split(",")[1], port_from(18_700), folder / "server.log")
    try:
        yield server
    finally:
        server.stop()


def run(given: argparse.Namespace, options: str, server: Server, num_problems: int) -> None:
    needed = given.groups * settings(options, given.steps)["steps"]
    if server.used + needed > num_problems:
        server.stop()
    for _ in range(2):
        kept = server.used > 0
        try:
            server.ready()
            run_trainer(given, options, server)
            server.used += needed
            return
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"peer {options}{', on a server kept from another run' if kept else ''}: {error}", flush=True)
            server.stop()
        if not kept:
            return


def run_trainer(given: argparse.Namespace, options: str, server: Server) -> None:
    """Raises RuntimeError or TimeoutExpired: it failed, or took too long."""
    command = [sys.executable, __file__, "--model", str(given.model), "--data", str(given.data)]
    command += ["--port", str(server.port), "--first", str(server.used)]
    command += ["--groups", str(given.groups), "--steps", str(given.steps), "--train", options]
    path = os.pathsep.join(filter(None, [str(LEARNER), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": given.gpus.split(",")[0], "PYTHONPATH": path}
    trainer = subprocess.Popen(command, env=environment, cwd=server.log.parent)
    try:
        code = trainer.wait(TRAINER_SECONDS)
    finally:
        kill(trainer)
    if code:
        raise RuntimeError(f"its trainer ended with exit code {code}")


def rewards(completions: list[Any], **_: Any) -> list[float]:
    """Different ones within a group, and no work: ours are scored by its reward server."""
    return [float(index % 3) for index in range(len(completions))]


def train(given: argparse.Namespace, options: dict[str, Any]) -> None:
    """In a process of its own. Its model is in bfloat16 with bfloat16 moments: no master weights."""
    from datasets import Dataset, Image
    from trl import GRPOTrainer

    rows = json.loads(given.data.read_text())[given.first :][: given.groups * options["steps"]]
    problems = [[{"role": "user", "content": row["problem"]}] for row in rows]
    images = [str(given.data.parent / row["image"]) for row in rows]
    dataset = Dataset.from_dict({"prompt": problems, "image": images}).cast_column("image", Image())
    trainer = GRPOTrainer(
        model=str(given.model), reward_funcs=[rewards], args=peer_arguments(given, options), train_dataset=dataset
    )
    if options["windows"]:
        from mmr1_learner.vision_attention import batch_vision_attention

        batch_vision_attention(trainer.model)
        if "window" not in trainer.model.model.visual.config._attn_implementation:
            raise SystemExit("end_to_end_peer: error: windows=1 knows no vision tower of this model's family")
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


def peer_arguments(given: argparse.Namespace, options: dict[str, Any]) -> Any:
    from trl import GRPOConfig

    changed = {} if options["is"] is None else {"vllm_importance_sampling_correction": bool(options["is"])}

    return GRPOConfig(
        output_dir="trl_out",
        per_device_train_batch_size=options["rows"],
        gradient_accumulation_steps=given.groups * NUM_GENERATIONS // options["rows"],
        num_generations=NUM_GENERATIONS,
        max_completion_length=TOKENS,
        max_steps=options["steps"],
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
        **changed,
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
    parser.add_argument("--runs", nargs="+", default=["rows=16"], help="see above")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given, settings(given.train, given.steps))
        return
    for options in given.runs:
        settings(options, given.steps)  # a wrong one is refused before anything starts
    given.model, given.data = given.model.resolve(), given.data.resolve()
    num_problems = len(json.loads(given.data.read_text()))
    with tempfile.TemporaryDirectory() as folder, server_of(given, Path(folder)) as server:
        for options in given.runs:
            run(given, options, server, num_problems)


if __name__ == "__main__":
    main()
