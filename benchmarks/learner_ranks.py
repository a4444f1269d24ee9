"""The learner on several GPUs at the 3B shape, without servers: a step by ranks and ZeRO stage, and what is beside it.

    python benchmarks/learner_ranks.py --ways 1:1 2:2 2:1 3:2 3:1 3:3    # ranks:stage, one after another
    python benchmarks/learner_ranks.py --ways 2:2 --profile              # and what rank 0's GPU does

A step is `learner_gpu.py shape`'s with as many groups on each rank. `beside` is the same step while a thread of rank 0
compares answers to a probe, as it does for a version under way: of so many servers in one forward, or one after the
other. `launched` is when the host has told the GPU all that is before the optimizer. No server, no weights are sent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from learner_gpu import make_trainer
from learner_profile import idle_by_phase, note_phases, report
from learner_rows import NUM_GENERATIONS, make_config
from learner_step import free_port, make_groups
from shapes import DEFAULT_SHAPE, SHAPES, SIDE, make_shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from versions import print_versions

from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion
from mmr1_learner.model import PromptEncoder
from mmr1_learner.parity import Scorer
from mmr1_learner.plan import StepPlan
from mmr1_learner.published import Published
from mmr1_learner.ranks import Ranks
from mmr1_learner.trainer import Trainer

WARM_UP, PROBE_TOKENS = 3, 16
AFTER_SECONDS = 0.3  # from a step's beginning, a probe's answer is there: as in runs of one rank and one server


class Way(NamedTuple):
    ranks: int
    stage: int

    @classmethod
    def parse(cls, text: str) -> Way:
        ranks, _, stage = text.partition(":")
        return cls(int(ranks), int(stage or 2))

    def __str__(self) -> str:
        return f"{self.ranks}:{self.stage}"


class Rank:
    """One rank's learner and its groups; on rank 0 also what compares."""

    def __init__(self, folder: Path, model: Path, given: argparse.Namespace) -> None:
        way: Way = given.way
        options: dict[str, Any] = {} if given.cpu else {"dtype": "bfloat16"}
        config = make_config(
            folder,
            **options,
            num_generations=NUM_GENERATIONS,
            max_completion_length=64,
            model=str(model),
            zero_stage=way.stage,
            learner_processes=way.ranks,
            gradient_checkpointing=given.checkpointing,
            per_device_batch_size=NUM_GENERATIONS * given.per_forward,
            gradient_accumulation_steps=given.groups // given.per_forward,
            learner_threads=given.threads,
        )
        groups = make_groups(folder, given.groups * way.ranks, side=given.side, length=lambda _: 64, model=model)
        self.plan = StepPlan(0, tuple(groups), version=PolicyVersion(1, 0))
        self.trainer: Trainer = make_trainer(model, config)
        self.ranks: Ranks = self.trainer._ranks
        self.published = Published(self.trainer.policy, self.ranks, config.weight_bucket_bytes)
        encoder: PromptEncoder = self.trainer._batcher._encoder
        self._scorer = Scorer(config, self.published, encoder, self.ranks.device)
        probe = make_groups(folder, 1, side=given.side, length=lambda _: PROBE_TOKENS, model=model)[0]
        images = [ImageStore(folder).open(image) for image in probe.prompt.images]
        token_ids = encoder.encode(probe.prompt.text, images).token_ids
        self._answer: Group = replace(probe, prompt_token_ids=token_ids)
        self._step = 0
        self._cuda = not given.cpu
        self.is_first = self.ranks.is_first

    def take(self, compare: Callable[[], None] | None = None) -> dict[str, float]:
        """One step: seconds of it, when all was launched, and the trainer's phases."""
        self.ranks.barrier()
        self.sync()
        self._step += 1
        plan, following = replace(self.plan, step=self._step), replace(self.plan, step=self._step + 1)
        found: dict[str, float] = {}
        began = time.perf_counter()

        def launched(_: bool) -> None:
            found["launched"] = time.perf_counter() - began
            self.trainer.expect(following)

        beside = threading.Thread(target=self._beside, args=(compare, found)) if compare and self.is_first else None
        self.trainer.before_forwards = beside.start if beside else lambda: None
        self.trainer.while_computing = launched
        self.trainer.before_moving = lambda _: beside.join() if beside else None
        self.trainer.step(plan)
        self.published.refresh()
        self.sync()
        return {"seconds": time.perf_counter() - began, **found, **self.trainer.phases}

    def _beside(self, compare: Callable[[], None], found: dict[str, float]) -> None:
        time.sleep(AFTER_SECONDS)
        began = time.perf_counter()
        with self.published.beside():
            compare()
        found["comparing"] = time.perf_counter() - began

    def together(self, servers: int) -> None:
        self._scorer.compare_each([[self._answer]] * servers)

    def in_turn(self, servers: int) -> None:
        for _ in range(servers):
            self._scorer.compare_each([[self._answer]])

    def sync(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def middle(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for name in steps[-1] if any(step.get(name) for step in steps)]
    return {name: round(statistics.median(step.get(name, 0.0) for step in steps), 3) for name in names}


def one(folder: Path, model: Path, given: argparse.Namespace) -> None:
    """A rank of one way; rank 0 says what was measured."""
    rank = Rank(folder, model, given)

    def say(what: str, steps: Sequence[dict[str, float]]) -> None:
        if rank.is_first:
            line = {"way": str(given.way), "groups": len(rank.plan.groups), "what": what, **middle(steps)}
            line["all"] = [round(step["seconds"], 3) for step in steps]
            if not given.cpu:
                line["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
                torch.cuda.reset_peak_memory_stats()
            print(json.dumps(line), flush=True)

    for _ in range(WARM_UP):
        rank.take()
    say("alone", [rank.take() for _ in range(given.repeats)])
    for servers in given.beside if rank.published.scores_alone else []:
        ways = {"together": partial(rank.together, servers)}
        ways |= {"in turn": partial(rank.in_turn, servers)} if servers > 1 else {}
        for how, compare in ways.items():
            say(f"beside {servers} {how}", [rank.take(compare) for _ in range(given.repeats)])
    if given.profile:
        profiled(rank, given.top)


def profiled(rank: Rank, top: int) -> None:
    if not rank.is_first:
        rank.take()
        return
    phases = note_phases(rank.trainer)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds = rank.take()["seconds"]
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    report(kernels, len(rank.plan.groups), seconds, top)
    raw = [one for one in found.profiler.kineto_results.events() if one.device_type() == DeviceType.CUDA]
    print(json.dumps({"idle": idle_by_phase(raw, phases)}), flush=True)


def start(way: Way, folder: Path, model: Path, limit: float) -> str | None:
    """The ranks of one way, each a process. Returns what went wrong."""
    common = {**os.environ, "WORLD_SIZE": str(way.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, *sys.argv[1:], "--way", str(way), "--model", str(model)]
    ranks = []
    for rank in range(way.ranks):
        place = folder / f"{way}-{rank}".replace(":", "-")
        place.mkdir()
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen([*command, "--out", str(place)], env=environment))
    end, codes = time.monotonic() + limit, []
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < end:
            time.sleep(0.2)  # the others would wait for one that has died
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()  # its GPU is free then
    if codes == [0] * way.ranks:
        return None
    return f"{way}: " + ", ".join(f"rank {rank} {_ended(code)}" for rank, code in enumerate(codes))


def _ended(code: int | None) -> str:
    return "was still at it" if code is None else f"ended with {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=Way.parse, nargs="+", default=[Way(1, 1), Way(2, 2)], help="ranks:stage")
    parser.add_argument("--groups", type=int, default=8, help="of each rank in a step")
    parser.add_argument("--per-forward", type=int, default=4, help="groups")
    parser.add_argument("--checkpointing", default="vision", help="gradient_checkpointing: true, false or vision")
    parser.add_argument("--repeats", type=int, default=5, help="steps")
    parser.add_argument("--beside", type=int, nargs="*", default=[1, 2], help="answers of so many servers")
    parser.add_argument("--threads", type=int, default=4, help="that encode images, of each rank")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images, in pixels")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for one way")
    parser.add_argument("--profile", action="store_true", help="of one more step, rank 0's GPU")
    parser.add_argument("--top", type=int, default=12, help="kernels by name")
    parser.add_argument("--shape", choices=SHAPES, default=DEFAULT_SHAPE)
    parser.add_argument("--model", type=Path, help="a folder; without it one of --shape is made")
    parser.add_argument("--cpu", action="store_true", help="a check of this program: float32, no GPU")
    parser.add_argument("--way", type=Way.parse, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.groups % given.per_forward:
        parser.error(f"{given.groups} groups are not whole forwards of {given.per_forward}")
    if given.way:
        one(given.out, given.model, given)
        return
    print_versions(**{**vars(given), "ways": [str(way) for way in given.ways]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or folder / "model"
        if given.model is None:
            make_shape(model, given.shape)
        failed = [why for way in given.ways if (why := start(way, folder, model, given.limit))]
    if failed:
        sys.exit(f"learner_ranks: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
