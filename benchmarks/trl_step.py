"""TRL's GRPOTrainer on recorded completions, for learner_step.py: runs in TRL's own environment, speaks JSON lines.

    python benchmarks/trl_step.py JOB.json      # then a line "go" on standard input for each generation batch

Everything is TRL's but the sampling: completions come from the job. It knows nothing of the project's learner.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import mmr1_torchvision_cpu  # noqa: F401 - before anything imports torchvision
import torch
from datasets import Dataset, Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

SECONDS: dict[str, float] = {"tokenize": 0.0, "process": 0.0}


class Recorded(GRPOTrainer):  # type: ignore[misc]
    """Says what was sampled before, in the order of the rows."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        size = self.num_generations
        self._recorded = [row["recorded"][index % size] for index, row in enumerate(inputs)]
        output = super()._generate_and_score_completions(inputs)
        logprobs, mask = output["old_per_token_logps"], output["completion_mask"]
        self.mean_old_logprob = float((logprobs * mask).sum() / mask.sum())
        return output

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> Any:
        return self._recorded, None

    def _tokenize_prompts(self, prompts: Any) -> Any:
        began, processed = time.perf_counter(), SECONDS["process"]
        tokens = super()._tokenize_prompts(prompts)
        SECONDS["tokenize"] += time.perf_counter() - began
        SECONDS["process"] = processed
        return tokens


class Turns(TrainerCallback):  # type: ignore[misc]
    """Waits for its turn before each generation batch, and reports after it."""

    def __init__(self, steps_per_batch: int) -> None:
        self._steps_per_batch = steps_per_batch
        self.trainer: Any = None
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps_per_batch == 0:
            print(json.dumps({"ready": state.global_step}), flush=True)
            sys.stdin.readline()
            SECONDS.update(tokenize=0.0, process=0.0)
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps_per_batch == 0:
            seconds = time.perf_counter() - self._began - SECONDS["tokenize"]
            result = {
                "seconds": seconds,
                "compute_seconds": seconds - SECONDS["process"],
                "mean_old_logprob": self.trainer.mean_old_logprob,
            }
            print(json.dumps(result), flush=True)


def timed_processor(folder: str) -> Any:
    processor = AutoProcessor.from_pretrained(folder)
    plain = type(processor)

    class Timed(plain):  # type: ignore[misc, valid-type]
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            output = super().__call__(*arguments, **options)
            SECONDS["process"] += time.perf_counter() - began
            return output

    Timed.__name__ = plain.__name__
    processor.__class__ = Timed
    return processor


def reward(prompts: Any, completions: Any, rewards: Any, **_: Any) -> list[float]:
    return [row[index % len(row)] for index, row in enumerate(rewards)]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    rows = Dataset.from_list(job["rows"]).cast_column("image", Image())
    steps_per_batch, size = job["num_updates_per_batch"], len(job["rows"]) * job["num_generations"]
    arguments = GRPOConfig(
        output_dir=job["folder"],
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        gradient_checkpointing=False,  # as ours
        shuffle_dataset=False,
        per_device_train_batch_size=size // steps_per_batch,
        steps_per_generation=steps_per_batch,
        gradient_accumulation_steps=1,
        num_generations=job["num_generations"],
        max_completion_length=job["max_completion_length"],
        max_steps=job["batches"] * steps_per_batch,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=job["adam_beta2"],
        beta=job["k3_weight"],
        loss_type="grpo",
        temperature=1.0,
    )
    turns = Turns(steps_per_batch)
    trainer = Recorded(
        model=AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32),
        processing_class=timed_processor(job["model"]),
        reward_funcs=[reward],
        args=arguments,
        train_dataset=rows,
        callbacks=[turns],
    )
    turns.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
