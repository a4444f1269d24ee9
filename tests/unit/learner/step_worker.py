"""One learner rank for tests that need real ranks: trains scenarios on the groups it is given, saves what they leave.

A scenario has a `name`, a run's `options`, and maybe `first` and `last` (its steps, on the same groups each time),
`load` (a folder with a training state), `save_at` (the step after which one is written), `export`, `loop` (the loop of
train.py takes the steps, checkpoints included), `meanwhile` (rank 0 scores before a step's forwards), and `beside` (a
thread of rank 0 scores without pause until a step's parameters move). All of them run in one process one after the
other: importing the engines takes longer than any.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import torch
import torch.distributed as dist

from mmr1.config import RunConfig
from mmr1_learner import published as published_file
from mmr1_learner.checkpoint import Checkpoints, RunState
from mmr1_learner.export import export
from mmr1_learner.model import PromptEncoder, policy_of
from mmr1_learner.parity import perturbed, scoring
from mmr1_learner.plan import StepPlan, cut
from mmr1_learner.published import Published
from mmr1_learner.published_adapters import PublishedAdapters, publish
from mmr1_learner.ranks import Ranks, join_ranks
from mmr1_learner.reference import reference_of
from mmr1_learner.train import _take_steps
from mmr1_learner.trainer import Trainer
from mmr1_learner.training_state import flat_masters
from mmr1_learner.whole import gathered
from tests.models import small_config


def run(folder: Path, model: Path, ranks: Ranks, plan: StepPlan, scenario: dict[str, Any]) -> dict[str, Any]:
    config = small_config(model, **scenario["options"]).for_world_size(ranks.world_size)
    policy = policy_of(config, ranks)
    loaded = torch.zeros(ranks.world_size)  # bytes of weights that each rank holds before any are cut
    loaded[ranks.rank] = sum(p.untyped_storage().nbytes() for p in policy.parameters())
    if ranks.world_size > 1:
        dist.all_reduce(loaded)
    encoder = PromptEncoder(model, policy, config)
    trainer = Trainer(config, ranks, policy, encoder, reference_of(config, policy))
    if "load" in scenario:
        trainer.state.load(Path(scenario["load"]))
    report: dict[str, float] = {}
    scored: list[bool] = []
    published = publish(config.model_copy(update={"weight_bucket_bytes": 200_000}), trainer.policy, ranks)
    if scenario.get("meanwhile") and ranks.is_first:
        trainer.before_forwards = lambda: scored.append(True) or score(trainer, published, plan, config)
    beside = Beside(trainer, published, plan, config) if scenario.get("beside") and ranks.is_first else None
    if scenario.get("loop"):
        checkpoints = Checkpoints(folder / scenario["name"], keep_last=2)
        leader: Any = Told(trainer, published, plan, config, checkpoints) if ranks.is_first else None
        assert _take_steps(config, published, trainer, leader, checkpoints, None)
        scenario["last"] = 0
    for step in range(scenario.get("first", 0), scenario.get("last", 1)):
        with beside or nullcontext():
            report = trainer.step(StepPlan(step, plan.groups, version=plan.version))
        if step + 1 == scenario.get("save_at"):
            trainer.state.save(folder / f"{scenario['name']}.state")
    published.refresh()
    if scenario.get("export"):
        export(config, published, encoder.processor, config.run_dir)
    result = {
        "parameters": {name: tensor.to("cpu", copy=True) for name, tensor in published.named_tensors()},
        "shapes": {spec.name: spec.shape for spec in published.manifest()},
        "adapters": published.adapter_tensors(),
        "base": dict(published.base_tensors()) if isinstance(published, PublishedAdapters) and ranks.is_first else {},
        "reference": reference(trainer),
        "report": report,
        "scored": scored,
        "beside": beside.found if beside else [],
        "gaps": dict(trainer.gaps),
        "held": held(trainer),
        "stage": trainer.engine.zero_optimization_stage(),
        "loaded": loaded.tolist(),
        "scores": scores(trainer, published, plan, config) if ranks.is_first else {},
    }
    published.tell(b"" if ranks.is_first else None)
    return result


class Beside:
    """A thread that scores one batch again and again while a step computes, as the proof of a version does once."""

    def __init__(self, trainer: Trainer, published: Published, plan: StepPlan, config: RunConfig) -> None:
        self._trainer, self._published = trainer, published
        self._asked = (trainer, published, plan, config)
        self.found: list[tuple[int, float]] = []  # of each step: how often it scored, and how far off from alone

    def __enter__(self) -> None:
        self._published.refresh()
        alone, self._over, self._begun = score(*self._asked), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._score, args=(alone,))
        self._trainer.before_forwards = self._begin
        self._trainer.before_moving = self._end

    def _begin(self) -> None:
        self._thread.start()
        self._begun.wait()

    def _score(self, alone: torch.Tensor) -> None:
        count, off = 0, 0.0
        with self._published.beside():
            self._begun.set()
            while not count or not self._over.is_set():
                count, off = count + 1, max(off, float((score(*self._asked) - alone).abs().max()))
        self.found.append((count, off))

    def _end(self, _is_last: bool) -> None:
        self._over.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self._trainer.before_forwards = self._trainer.before_moving = lambda *_: None


def _waits(tick: Callable[[], None] | None) -> None:
    """As for a version under way, which takes so long that the other ranks are told twice that this one is alive."""
    with patch.object(published_file, "_KEEP_ALIVE_SECONDS", 0.0):
        for _ in range(2 if tick else 0):
            tick()  # type: ignore[misc]


class Told:
    """Stands where Leader does, with groups at hand and nobody to send weights to. It scores after each step."""

    def __init__(
        self, trainer: Trainer, published: Published, plan: StepPlan, config: RunConfig, checkpoints: Checkpoints
    ) -> None:
        self._trainer, self._published, self._plan, self._config = trainer, published, plan, config
        self._checkpoints = checkpoints
        self.queue = Mock()
        self.updates = Mock()
        self.updates.end = _waits
        self._asked_ahead: set[int] = set()

    def plan_ahead(self, step: int) -> bytes:
        """Known at once before every second step, and before the others when it is asked for again."""
        known = step % 2 or step in self._asked_ahead
        self._asked_ahead.add(step)
        return self.next_plan(step).encode() if known else b""

    def next_plan(self, step: int) -> StepPlan:
        return StepPlan(step, self._plan.groups, version=self._plan.version)

    def after_step(self, *_: Any) -> None:
        scores(self._trainer, self._published, self._plan, self._config)

    def state_at(self, step: int) -> RunState:
        return RunState(step, step, 0)

    def commit_checkpoint(self, state: RunState) -> None:
        self._checkpoints.finish(state, lambda: None)


def held(trainer: Trainer) -> dict[str, Any]:
    """How much this rank holds, in elements, and what DeepSpeed keeps in the host's memory."""
    parameters = list(trainer.policy.parameters())
    zero = trainer.engine.config["zero_optimization"]
    return {
        "parameters": sum(getattr(part, "ds_tensor", part).numel() for part in parameters),
        "masters": sum(master.numel() for master in flat_masters(trainer.engine)),
        "masters_on": sorted({master.device.type for master in flat_masters(trainer.engine)}),
        "offloaded": sorted(key for key in ("offload_optimizer", "offload_param") if key in zero),
    }


def reference(trainer: Trainer) -> dict[str, Any]:
    """The whole parameters of a reference that moves."""
    held = trainer._reference
    if held is None or not held.moves:
        return {}
    named = dict(held.policy.hf.named_parameters())
    with gathered(list(named.values())):
        return {name: parameter.data.to("cpu", copy=True) for name, parameter in named.items()}


def score(trainer: Trainer, published: Published, plan: StepPlan, config: RunConfig) -> torch.Tensor:
    """One forward of rank 0 alone, as the comparison with a server's log-probabilities makes it."""
    (forward, *_), *_ = cut(plan, config.model_copy(update={"per_device_batch_size": 2}), 1)[0]
    batcher = trainer._batcher
    batch = trainer._place(batcher.pack(plan, forward, batcher.encode(plan, [forward])))
    with torch.no_grad(), scoring(published):
        return published(batch).logprobs.clone()


def scores(trainer: Trainer, published: Published, plan: StepPlan, config: RunConfig) -> dict[str, Any]:
    """Rank 0's log-probabilities of one forward: as the weights are, with each tower perturbed, and after that."""
    (forward, *_), *_ = cut(plan, config.model_copy(update={"per_device_batch_size": 2}), 1)[0]
    batcher = trainer._batcher
    batch = trainer._place(batcher.pack(plan, forward, batcher.encode(plan, [forward])))
    published.eval()
    found = {}
    with torch.no_grad():
        found["before"] = published(batch).logprobs.to("cpu", copy=True)
        for tower in ("visual", "language_model"):
            with perturbed(published, tower):
                found[tower] = published(batch).logprobs.to("cpu", copy=True)
        if isinstance(published, PublishedAdapters) and published.named_adapters():
            with published.planted():
                found["planted"] = published(batch).logprobs.to("cpu", copy=True)
        found["after"] = published(batch).logprobs.to("cpu", copy=True)
    return found


def main() -> None:
    folder, model, scenarios = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    ranks = join_ranks()
    plan = StepPlan.decode(ranks.share((folder / "plan").read_bytes() if ranks.is_first else None))
    for scenario in scenarios:
        result = run(folder, model, ranks, plan, scenario)
        if ranks.is_first:
            torch.save(result, folder / f"{scenario['name']}.pt")
        ranks.barrier()


main()
