"""Whole runs at the 3B shape: the step's time, the two halves that it is made of, and TRL on as many GPUs.

    PYTHONPATH=. python benchmarks/end_to_end_gpu.py --layouts 1+1                  # two GPUs: a learner rank, a server
    PYTHONPATH=. python benchmarks/end_to_end_gpu.py --layouts 1+3 2+2 3+1 3+1:3 --groups 24  # four; :3 is ZeRO-3
    PYTHONPATH=. python benchmarks/end_to_end_gpu.py --layouts 1+1 --peer 2,3       # beside it TRL on two others
    PYTHONPATH=. python benchmarks/end_to_end_gpu.py --layouts 1+1 --peer 0,1       # TRL after it, on the same two
    PYTHONPATH=. python benchmarks/end_to_end_gpu.py --model examples/tiny_vlm --side 112 --cpu  # without a GPU

The first line printed names the options that are not a run's defaults. `--defaults` leaves those at their defaults that
only make it faster, and has a checkpoint inside what is measured, every `--checkpoint-every` steps.

Each layout is `mmr1 up` with every part real, on the first GPUs; after some steps its processes are killed, because
nothing is measured at the end. Random weights, so nothing is learned: the reward is the edit distance to random words.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import redis
import yaml
from end_to_end_peer import kill
from PIL import Image
from versions import print_versions

from mmr1.local.gpus import visible_gpus
from mmr1.streams.scripts import Scripts
from mmr1.wire import decode_group
from tests.conftest import free_port, free_ports

NUM_GENERATIONS, TOKENS, WARM_UP = 8, 64, 3
QUESTION = "What do you see? Answer in a few words."


@dataclass(frozen=True, slots=True)
class Layout:
    """`ranks+servers`, and `:stage` of ZeRO."""

    ranks: int
    servers: int
    stage: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        layout, _, stage = text.partition(":")
        ranks, servers = layout.split("+")
        return cls(int(ranks), int(servers), int(stage or 2))

    def __str__(self) -> str:
        return f"{self.ranks}+{self.servers}:{self.stage}"


def draw_problems(folder: Path, count: int, side: int) -> Path:
    """Rows with an image each, coarse noise of `side` pixels, and a solution of random words."""
    folder.mkdir()
    rows = []
    for index in range(count):
        coarse = np.random.RandomState(index).randint(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).save(folder / f"{index}.png")
        words = " ".join(f"w{number}" for number in random.Random(index).sample(range(400, 150_000), 40))
        rows.append({"image": f"{index}.png", "problem": QUESTION, "solution": words})
    file = folder / "train.json"
    file.write_text(json.dumps(rows))
    return file


def raised(given: argparse.Namespace) -> dict[str, Any]:
    """What a run would have to be told for these figures, and is not without it."""
    if given.defaults:
        return {"checkpoint_every": given.checkpoint_every, "keep_last": 1}
    return {
        "keep_last": 1,  # checkpoints, for which a run wants room before it begins
        "max_num_seqs": 512,
        "max_concurrent_prompts": 64,
        "learner_threads": given.threads,
        "rollout_threads": given.threads,
        "checkpoint_every": 1000,  # none is made
    }


# With --defaults too: the peer has no reference model either, and held-out problems are not what is measured.
NOT_DONE: dict[str, Any] = {"kl": [], "eval_at_start": False}


def run_options(layout: Layout, model: Path, data: Path, run_dir: Path, given: argparse.Namespace) -> dict[str, Any]:
    """RUN.yaml of one layout: the whole step's groups over its ranks, a forward's worth at a time."""
    groups_a_rank, rest = divmod(given.groups, layout.ranks)
    num_forwards, more = divmod(groups_a_rank, min(given.groups_a_forward, groups_a_rank))
    if rest or more:
        raise SystemExit(
            f"end_to_end: error: {given.groups} groups are not {layout.ranks} ranks times whole forwards of "
            f"{given.groups_a_forward}; change --groups or --groups-a-forward"
        )
    return {
        "run": f"shape-{layout.ranks}-{layout.servers}-{layout.stage}",
        "run_dir": str(run_dir),
        "model": str(model),
        "dtype": "float32" if given.cpu else "bfloat16",
        "train_file": str(data),
        "task": "ocr",
        "rewards": ["ocr=1.0"],
        **NOT_DONE,
        **raised(given),
        "num_steps": 1000,
        "num_generations": NUM_GENERATIONS,
        "max_prompt_length": 1280,
        "max_completion_length": TOKENS,
        "per_device_batch_size": NUM_GENERATIONS * (groups_a_rank // num_forwards),
        "gradient_accumulation_steps": num_forwards,
        "gradient_checkpointing": given.checkpointing,
        "learning_rate": 1e-6,
        "learner_processes": layout.ranks,
        "zero_stage": layout.stage,
        "rollout_replicas": layout.servers,
        "parity_prompts": 4,
        # Noise says little about a small model, and this checks a program and no model.
        **({"parity_bound": 1e-4} if given.cpu else {}),
        "redis_port": free_port(),
        "reward_port": free_port(),
        "rollout_port": free_ports(layout.servers),
        "learner_metrics_port": free_ports(1 + layout.servers),
        "learner_master_port": free_port(),
    }


class Run:
    """`mmr1 up` of one layout, until it has made its steps."""

    def __init__(self, options: dict[str, Any], folder: Path, gpus: list[str]) -> None:
        self.options, self.folder = options, Path(options["run_dir"])
        config = folder / f"{options['run']}.yaml"
        config.write_text(yaml.safe_dump(options))
        self.log = folder / f"{options['run']}.log"
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmr1.cli", "up", str(config)], stdout=log, stderr=log, env=environment
            )

    def metrics(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, steps: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(self.metrics()) < steps:
            if self.process.poll() is not None or time.monotonic() > end:
                why = "ended" if self.process.poll() is not None else f"made no {steps} steps in {seconds:.0f} s"
                raise RuntimeError(f"{self.options['run']} {why}:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.2)

    def sampled(self) -> dict[str, list[tuple[float, float]]]:
        """When each group was being sampled, by the server that did: from, to, in seconds since the epoch.

        One that was sampled ahead of its version's proof, and held, is shown later by as much.
        """
        client = redis.Redis(port=self.options["redis_port"])
        entries: Any = client.xrange(Scripts(client, self.options["run"]).key("groups"))
        found: dict[str, list[tuple[float, float]]] = {}
        for entry_id, fields in entries:
            group = next(decode_group(value) for name, value in fields.items() if name == b"payload")
            published = int(entry_id.partition(b"-")[0]) / 1000
            spans = found.setdefault(group.server_id, [])
            spans.append((published - group.generate_seconds, published))
        return found


def union(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between `begin` and `end` that lie in any of the spans."""
    total, reached = 0.0, begin
    for first, last in sorted(spans):
        first, last = max(first, reached), min(last, end)
        total += max(0.0, last - first)
        reached = max(reached, last)
    return total


STATE = re.compile(r"^ *(rollout-\d+) \| timestamp=(\S+)Z .*event=(state|samples_ahead) (?:.*\bstate=(\w+))?")


def pauses(run: Run) -> list[float]:
    """How long nothing new was sampled in each update, in seconds, by the servers' own log."""
    found, closed = [], {}
    for line in filter(None, map(STATE.match, run.log.read_text().splitlines())):
        server, when, event, state = line.groups()
        at = datetime.fromisoformat(when).timestamp()
        if state == "updating":
            closed[server] = at
        elif server in closed and (state == "serves" or event == "samples_ahead"):
            found.append(at - closed.pop(server))
    return found


def figures(run: Run, layout: Layout) -> dict[str, Any]:
    measured = run.metrics()[WARM_UP:]
    seconds = [step["seconds"] for step in measured]
    update = [step["phases"]["weight_update"] for step in measured]
    learner = [step["seconds"] - step["phases"]["wait"] - step["phases"]["weight_update"] for step in measured]
    begin, end = measured[0]["time"] - measured[0]["seconds"], measured[-1]["time"]
    sampled = run.sampled()
    rollout = union([span for spans in sampled.values() for span in spans], begin, end) / len(measured)
    busy = {server: round(union(spans, begin, end) / len(measured), 3) for server, spans in sorted(sampled.items())}
    middle = statistics.median(seconds)
    # From record to record: what is between steps, which is checkpoints, too.
    whole = (end - measured[0]["time"]) / max(1, len(measured) - 1)
    larger = max(statistics.median(learner), rollout)
    groups = statistics.fmean(step["num_groups"] for step in measured)
    closed = pauses(run)[-len(measured) * layout.servers :]
    return {
        "layout": str(layout),
        "steps": len(measured),
        "groups": groups,
        "seconds": round(middle, 3),
        "seconds_with_checkpoints": round(whole, 3),
        "quartiles": [round(part, 3) for part in statistics.quantiles(seconds, n=4)[::2]],
        "learner": round(statistics.median(learner), 3),
        "rollout": round(rollout, 3),  # sampling and scoring; prompts are made into pixels beside it
        "busy": busy,  # of each server; `rollout` is when any of them was
        "update": round(statistics.median(update), 3),
        "admission_closed": round(statistics.median(closed), 3) if closed else None,
        "step_to_larger_half": round(middle / larger, 3),
        "groups_an_hour": round(3600 * groups / statistics.fmean(seconds)),
        "lag": statistics.fmean(step["lag_mean"] for step in measured if step["lag_mean"] is not None),
        "phases": medians([step["phases"] for step in measured]),
        "update_phases": medians([step["update_phases"] for step in measured]),
    }


def medians(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(part.get(name, 0.0) for part in parts), 3) for name in parts[-1]}


def measure(layout: Layout, model: Path, data: Path, folder: Path, gpus: list[str], given: argparse.Namespace) -> None:
    options = run_options(layout, model, data, folder / f"run-{layout.ranks}-{layout.servers}-{layout.stage}", given)
    began = time.monotonic()
    run = Run(options, folder, gpus)
    try:
        run.wait(WARM_UP + given.steps, given.limit)
        print(json.dumps({**figures(run, layout), "whole": round(time.monotonic() - began, 1)}), flush=True)
    finally:
        kill(run.process)
        if out := os.environ.get("OUT"):
            Path(out, f"{options['run']}.log").write_text(run.log.read_text()[-400_000:])


def stop(*_: object) -> NoReturn:
    raise SystemExit(143)  # so that what was started is ended


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=[Layout(1, 1, 2)], type=Layout.parse)
    parser.add_argument("--groups", type=int, default=8, help="in a step")
    parser.add_argument("--groups-a-forward", type=int, default=4, help="at most, on each rank")
    parser.add_argument("--checkpointing", default="vision", help="gradient_checkpointing: true, false or vision")
    parser.add_argument("--steps", type=int, default=8, help=f"measured, after {WARM_UP}")
    parser.add_argument("--side", type=int, default=896, help="of the images, in pixels")
    parser.add_argument("--threads", type=int, default=4, help="rollout_threads and learner_threads")
    parser.add_argument("--defaults", action="store_true", help="threads, prompts and sequences of a run's own")
    parser.add_argument("--checkpoint-every", type=int, default=5, help="with --defaults")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one layout")
    parser.add_argument("--model", type=Path, help="a folder; without it one of --shape is made")
    parser.add_argument("--shape", default="qwen2_5_vl_3b", help="see shapes.py")
    parser.add_argument("--cpu", action="store_true", help="a check of this program: float32, no GPU")
    parser.add_argument("--peer", help="GPUs of TRL and of its server: A,B; if one is the layouts', after them")
    parser.add_argument(
        "--peer-runs", nargs="+", default=["rows=16,checkpointing=1,liger=0"], help="see end_to_end_peer.py"
    )
    given = parser.parse_args()
    gpus = visible_gpus(os.environ)
    first, last = WARM_UP + 1, WARM_UP + given.steps
    if given.defaults and last // given.checkpoint_every == (first - 1) // given.checkpoint_every:
        parser.error(f"no checkpoint in steps {first} to {last}; lower --checkpoint-every or raise --steps")
    print_versions(defaults=given.defaults, options={**NOT_DONE, **raised(given)}, given=vars(given))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model.resolve() if given.model else folder / "model"
        if not given.model:
            from shapes import make_shape  # by torch, whose CUDA nothing else here needs

            make_shape(model, given.shape)
        data = draw_problems(folder / "data", 64, given.side)
        taken = gpus[: max(layout.ranks + layout.servers for layout in given.layouts)]
        beside = given.peer and not {*given.peer.split(",")} & {*taken}
        peer = start_peer(model, data, given) if beside else None
        failed = []
        try:
            for layout in given.layouts:
                try:
                    measure(layout, model, data, folder, [] if given.cpu else gpus, given)
                except RuntimeError as error:
                    print(f"{layout}: {error}", flush=True)
                    failed.append(layout)
            if given.peer and not beside and len(failed) < len(given.layouts):  # or there is nothing to compare it with
                peer = start_peer(model, data, given)
        finally:
            if peer is not None:
                peer.wait()
    raise SystemExit(1 if failed else 0)


def start_peer(model: Path, data: Path, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("end_to_end_peer.py"))]
    command += ["--model", str(model), "--data", str(data), "--gpus", given.peer, "--groups", str(given.groups)]
    return subprocess.Popen([*command, "--runs", *given.peer_runs])


if __name__ == "__main__":
    main()
