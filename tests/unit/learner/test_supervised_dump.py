"""A fine-tuning step without a finite loss: all ranks leave, the one at fault names its examples, trackers hear."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.unit.learner.ranks_of_a_test import environment
from tests.unit.learner.test_supervised import ANSWERS, write_config, write_data

# The answer to one question counts for no number. `mmr1 sft` itself does the rest.
SPOILED = """
import json, math, sys
from tests.unit.learner.test_trackers import StandInWandb

wandb = sys.modules["wandb"] = StandInWandb()
from mmr1_learner.supervised import command
from mmr1_learner.supervised.examples import Examples

pack = Examples.pack

def spoiled(self, indices, weights):
    batch = pack(self, indices, weights)
    for place, index in enumerate(indices):
        if self.record(index)["problem"] == "Which colour?":
            batch.weights[batch.sequences == place] = math.nan
    return batch

Examples.pack = spoiled
try:
    command.main([sys.argv[1]])
except Exception as error:
    print(json.dumps([type(error).__name__, str(error), wandb.named("finish")]))
"""


@pytest.mark.engine
def test_the_ranks_leave_and_the_one_at_fault_names_its_examples(small_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "num_steps": 2,
        "per_device_batch_size": 2,
        "zero_stage": 2,
        "eval_at_start": False,
        "trackers": ["wandb"],
    }
    config = write_config(tmp_path, small_model, write_data(tmp_path), **options)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WANDB_MODE": "offline"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SPOILED, str(config)],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    (folder,) = (tmp_path / "sft" / "dumps").iterdir()
    dump = json.loads((folder / "dump.json").read_text())
    at_fault = said[dump["rank"]]
    reason = "loss nan from row 2 ('Which colour?')"
    assert {kind for kind, *_ in said} == {"ConfigurationError"}, "exit code 2: the next life would come to it again"
    assert at_fault[1].startswith(f"step 1: {reason}; {folder} lists its examples with their losses; change what made")
    assert said[1 - dump["rank"]][1].startswith("step 1: the loss of another rank is not finite; change what made it")
    assert [finished for _, _, finished in said] == [[[[], {"exit_code": 1}]], []], "rank 0's trackers hear of it"
    assert (dump["reason"], dump["step"], dump["world_size"], dump["checkpoint"]) == (reason, 1, 2, None)
    losses = {example["row"]: float(example["loss"]) for example in dump["examples"]}
    assert len(losses) == 2 and math.isnan(losses.pop(2)) and math.isfinite(*losses.values())
    (bad,) = [example for example in dump["examples"] if example["row"] == 2]
    assert (bad["problem"], bad["solution"], bad["images"]) == ("Which colour?", ANSWERS["Which colour?"], ["2.png"])
    assert (folder / "config.yaml").exists()
