"""The answers that `mmr1 sft` teaches: tokenised in parts, set down, and read again, in memory that does not grow."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import AutoTokenizer

from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.dataset import train_problems
from mmr1.errors import ConfigurationError
from mmr1_learner.model import PromptEncoder
from mmr1_learner.supervised import examples
from mmr1_learner.supervised.examples import encode_answers


@pytest.fixture(scope="module")
def encoder(small_model: Path) -> PromptEncoder:
    """What of it looks at answers."""
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    return cast(PromptEncoder, SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer)))


def options(folder: Path, small_model: Path, number: int, **more: Any) -> SftConfig:
    path = folder / f"{number}.jsonl"
    with path.open("w") as lines:
        for row in range(number):
            lines.write(json.dumps({"problem": f"What is {row} and 1?", "solution": row + 1, "image": "a.png"}) + "\n")
    values = {"model": small_model, "train_file": path, "run_dir": folder, "num_steps": 1, **more}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return load_options(SftConfig, None, [*words, "--per_device_batch_size", "4"])


def test_answers_in_parts_are_those_of_each_problem(
    small_model: Path, encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path, small_model, 17)
    monkeypatch.setattr(examples, "_AT_ONCE", 5)
    answers = encode_answers(config, encoder, train_problems(config, check_images=False))
    tokenizer = encoder.processor.tokenizer
    wanted = [(*tokenizer.encode(f"<answer>{row + 1}</answer>"), tokenizer.eos_token_id) for row in range(17)]
    assert len(answers) == 17 and list(answers) == wanted
    assert [answers[row] for row in (16, 0, 5)] == [wanted[16], wanted[0], wanted[5]]


def test_the_longest_is_named_in_whichever_part_it_is(
    small_model: Path, encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path, small_model, 12, max_completion_length=4)
    monkeypatch.setattr(examples, "_AT_ONCE", 5)
    with pytest.raises(ConfigurationError, match=r"^the answer '<answer>10</answer>' of row 9 has 5 tokens "):
        encode_answers(config, encoder, train_problems(config, check_images=False))


def test_memory_does_not_grow_with_the_rows(small_model: Path, encoder: PromptEncoder, tmp_path: Path) -> None:
    def peak(number: int) -> int:
        config = options(tmp_path, small_model, number)
        problems = train_problems(config, check_images=False)
        tracemalloc.start()
        answers = encode_answers(config, encoder, problems)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(answers) == number
        return size

    peak(100)  # what is imported at the first call
    assert peak(20_000) < 1.3 * peak(2_000)
