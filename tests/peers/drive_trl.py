"""TRL's GRPOTrainer with our reward functions: a step of training with a model made up here, and chosen completions."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from datasets import Dataset
from running_server import check, running_server
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from mmr1_reward_server.adapters import trl_reward, trl_reward_async

ROWS = [{"prompt": "How many dogs ?", "solution": "3"}, {"prompt": "?", "solution": "2"}]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "How", "many", "dogs", "?", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_trainer(folder: str, reward_funcs: list[Any]) -> GRPOTrainer:
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        logging_steps=1,
        save_strategy="no",
    )
    return GRPOTrainer(
        model=LlamaForCausalLM(config),
        processing_class=tokenizer,
        reward_funcs=reward_funcs,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
    )


def main() -> None:
    logging.disable(logging.WARNING)
    with running_server() as url, tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, [trl_reward(task="counting", url=url), trl_reward_async(task="format", url=url)])
        texts = ["<answer>3</answer>", "4", "no idea", "3"]
        inputs = [{"prompt": "?", "solution": label} for label in ("3", 3, "3", "a few")]
        rewards = trainer._calculate_rewards(inputs, ["?"] * 4, texts, [[1]] * 4)
        check("one column for each function", rewards[:3].tolist(), [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
        failed = (bool(torch.isnan(rewards[3, 0])), rewards[3, 1].item())
        check("a failed verdict is left out, not zero", failed, (True, 0.0))
        conversations = [[{"role": "assistant", "content": text}] for text in texts]
        again = trainer._calculate_rewards(inputs, [[{"role": "user", "content": "?"}]] * 4, conversations, [[1]] * 4)
        check("conversations score the same", again[:3].tolist(), rewards[:3].tolist())
        trainer.train()
        logged = {name for entry in trainer.state.log_history for name in entry}
        for name in ("rewards/mmr1_counting/mean", "rewards/mmr1_format/mean", "mmr1_counting/failed"):
            check(f"training logs {name}", name in logged, True)


if __name__ == "__main__":
    main()
