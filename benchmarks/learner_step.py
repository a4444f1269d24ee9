"""How much an optimizer step costs: shared-prefix rows against padded ones of our own, and the whole step against TRL.

    python benchmarks/learner_step.py rows       # counted FLOPs and seconds of forward and backward; values compared
    python benchmarks/learner_step.py packing    # several groups in one row, at the demo's shapes
    python benchmarks/learner_step.py trl        # the demo's step on the same groups, turn by turn with TRL 1.16's

`scripts/test_peers.sh trl` makes the peer's environment. All runs on one thread. Absolute numbers are this machine's;
only ratios within one run mean anything elsewhere. It measures no sampling, no weight update and no quality.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from learner_rows import (
    MODEL,
    NUM_GENERATIONS,
    ORDINARY_TOKENS,
    compare_packing,
    compare_rows,
    demo_length,
    make_config,
    shared,
    spread,
)
from PIL import Image

from mmr1.chat_template import ChatTemplate
from mmr1.images import ImageStore
from mmr1.records import (
    FinishReason,
    Group,
    Outcome,
    PolicyVersion,
    Problem,
    Prompt,
    PromptId,
    Rollout,
    Sampling,
    Score,
    VersionSpan,
)
from mmr1.templates import Templates, render
from mmr1_learner.model import Policy, PromptEncoder, load_policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.ranks import join_ranks
from mmr1_learner.rows import Completion, Row
from mmr1_learner.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
TRL = REPOSITORY / ".venv-peers" / "trl" / "bin" / "python"
QUESTION = "How many digits are in the image?"
DEMO = {  # examples/counting.yaml
    "num_generations": NUM_GENERATIONS,
    "max_completion_length": 12,
    "num_updates_per_batch": 2,
    "learning_rate": 3e-4,
    "adam_beta2": 0.95,
    "k3_weight": 0.01,
}


def make_groups(
    folder: Path,
    num_groups: int,
    side: int = 112,
    length: Callable[[random.Random], int] = demo_length,
    model: Path = MODEL,
) -> list[Group]:
    """By default the demo's step: 112 x 112 images, answers of 4 tokens and now and then up to 12, random rewards."""
    rng = random.Random(0)
    store, chat_template = ImageStore(folder), ChatTemplate.load(model)
    version = PolicyVersion(1, 0)
    sampling = Sampling(temperature=1.0, max_completion_length=max(12, length(random.Random(0))))
    groups = []
    for position in range(num_groups):
        pixels = np.random.default_rng(position).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{position}.png")
        problem = Problem(position, QUESTION, 3, (f"{position}.png",), "counting")
        prompt = Prompt(
            id=PromptId("benchmark", position),
            text=render(problem, Templates(), chat_template),
            images=(store.ref(f"{position}.png"),),
            task="counting",
            problem=QUESTION,
            solution=3,
            num_generations=NUM_GENERATIONS,
            sampling=sampling,
            rewards=(),
        )
        rollouts = []
        for _ in range(NUM_GENERATIONS):
            size = length(rng)
            rollouts.append(
                Rollout(
                    token_ids=tuple(rng.choices(ORDINARY_TOKENS, k=size)),
                    logprobs=(-5.0,) * size,
                    spans=(VersionSpan(version, 0, size),),
                    text="",
                    finish_reason=FinishReason.STOP,
                    score=Score(Outcome.OK, rng.random()),
                )
            )
        groups.append(Group(prompt, (), tuple(rollouts), "rollout-0", 0.0))
    return groups


class Peer:
    """TRL's trainer in its own process; idle until it is told to go."""

    def __init__(self, folder: Path, groups: list[Group], batches: int) -> None:
        question = Templates().question
        assert isinstance(question, str)
        job = {
            **DEMO,
            "folder": str(folder / "trl"),
            "model": str(MODEL),
            "batches": batches,
            "rows": [
                {
                    "prompt": [{"role": "user", "content": question.replace("{problem}", QUESTION)}],
                    "image": str(folder / group.prompt.images[0].path),
                    "recorded": [rollout.token_ids for rollout in group.rollouts],
                    "rewards": [rollout.score.reward for rollout in group.rollouts if rollout.score],
                }
                for group in groups
            ],
        }
        (folder / "job.json").write_text(json.dumps(job))
        command = [str(TRL), str(REPOSITORY / "benchmarks" / "trl_step.py"), str(folder / "job.json")]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def __enter__(self) -> Peer:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_ready(self) -> None:
        assert "ready" in self._answer()

    def batch(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                if "seconds" in answer or "ready" in answer:
                    return answer
        raise RuntimeError(f"the peer ended with {self.process.wait()}")


def compare_trl(num_groups: int, batches: int) -> None:
    if not TRL.exists():
        sys.exit("learner_step: no environment of TRL; `scripts/test_peers.sh trl` makes it")
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        groups = make_groups(folder, num_groups)
        config = make_config(folder, **DEMO, kl=["k3"], per_device_batch_size=num_groups * NUM_GENERATIONS)
        peer = stack.enter_context(Peer(folder, groups, batches + 1))
        os.environ.setdefault("MASTER_PORT", str(free_port()))
        ranks = join_ranks()
        policy = load_policy(str(MODEL), config)
        encoder = PromptEncoder(MODEL, policy, config)
        trainer = Trainer(config, ranks, policy, encoder, policy.frozen_copy())
        plan = StepPlan(0, tuple(groups), version=PolicyVersion(1, 0))
        before = mean_logprob(policy, encoder, groups, ImageStore(folder))
        theirs = peer.batch()["mean_old_logprob"]
        assert abs(before - theirs) < 1e-3, f"not the same groups: mean log-probability {before} and {theirs}"
        trainer.step(plan)  # first runs, TRL's above, warm up
        steps = DEMO["num_updates_per_batch"]
        ours_all, ours, trl_all, trl = [], [], [], []
        for batch in range(batches):
            peer.wait_ready()
            turn = peer.batch()
            trl_all.append(turn["seconds"] / steps)
            trl.append(turn["compute_seconds"] / steps)
            began = time.perf_counter()
            trainer.step(replace(plan, step=batch))
            took = time.perf_counter() - began
            ours_all.append(took / steps)
            ours.append((took - trainer.phases["encode"]) / steps)
    print(f"{num_groups} groups of {NUM_GENERATIONS}, {steps} optimizer steps a batch; seconds of one optimizer step")
    print(f"mean log-probability of the first batch: ours {before:.5f}, TRL's {theirs:.5f}")
    for title, mine, other in (("images and text included", ours_all, trl_all), ("tensors to step", ours, trl)):
        print(f"{title}\n  ours {spread(mine)}\n  TRL  {spread(other)}")
        print(f"  ours to TRL's {spread([a / b for a, b in zip(mine, other, strict=True)], 'x')}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def mean_logprob(policy: Policy, encoder: PromptEncoder, groups: list[Group], store: ImageStore) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for group in groups:
            prompt = encoder.encode(group.prompt.text, [store.open(image) for image in group.prompt.images])
            completions = tuple(Completion(one.token_ids, one.logprobs, 0.0, 0.0) for one in group.rollouts)
            logprobs = shared(policy, encoder, [Row(prompt, completions, 1.0)])
            total, count = total + float(logprobs.sum()), count + logprobs.numel()
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rows", "packing", "trl"])
    parser.add_argument("--completion", type=int, default=32, help="rows: tokens")
    parser.add_argument("--prompt", type=int, help="rows: tokens, 64 of them an image's; by default ten completions")
    parser.add_argument("--groups", type=int, help="default: 4 for rows; else 32, as the demo has")
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    if options.what == "rows":
        compare_rows(
            options.prompt or 10 * options.completion, options.completion, options.groups or 4, options.repeats
        )
    elif options.what == "packing":
        compare_packing(options.groups or 32, options.repeats)
    else:
        compare_trl(options.groups or 32, options.repeats)


if __name__ == "__main__":
    main()
