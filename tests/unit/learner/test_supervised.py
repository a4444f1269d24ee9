"""`mmr1 sft`: its loss is the cross-entropy of the answers, a model learns by it, and an interrupted run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmr1.cli import LEARNERS
from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.dataset import train_problems
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_model
from mmr1.report import main as report
from mmr1_learner import replay
from mmr1_learner.checkpoint import Checkpoints
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.supervised import command, loop
from mmr1_learner.supervised.examples import Examples
from mmr1_learner.supervised.tuner import answer_loss
from tests.conftest import REPOSITORY, free_port

ANSWERS = {"Which letter?": "k", "Which number?": 17, "Which colour?": "red", "Which word?": "no"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder: Path) -> Path:
    """Four questions about images of different sizes; the held-out file is the same."""
    rng = np.random.default_rng(0)
    rows = []
    for index, (question, answer) in enumerate(ANSWERS.items()):
        pixels = rng.integers(0, 255, (56, 56 + 28 * index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"problem": question, "solution": answer, "image": f"{index}.png"})
    for name in ("train.json", "eval.json"):
        (folder / name).write_text(json.dumps(rows))
    return folder


def write_config(folder: Path, small_model: Path, data: Path, **options: Any) -> Path:
    document = {
        "model": str(small_model),
        "train_file": str(data / "train.json"),
        "eval_file": str(data / "eval.json"),
        "run_dir": str(folder),
        "per_device_batch_size": 4,
        "learning_rate": 2e-3,
        "checkpoint_every": 1000,
        "question_template": "qwen",
    }
    path = folder / "sft.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**document, **options}))
    return path


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}


def sft(config: Path, *options: str) -> list[dict[str, Any]]:
    """Run the command; returns the lines of its metrics."""
    program = [sys.executable, "-m", "mmr1_learner.supervised.command", str(config), *options]
    subprocess.run(program, env=environment(), check=True, timeout=240)
    return lines(config.parent / "sft" / "metrics.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, small_model: Path, data: Path) -> Path:
    """The folder of a whole run of 60 steps."""
    folder = tmp_path_factory.mktemp("learned")
    config = write_config(folder, small_model, data, num_epochs=60, warmup_steps=5, lr_scheduler="cosine")
    assert len(sft(config)) == 60
    return folder / "sft"


def test_loss_is_the_cross_entropy_of_the_answers(small_model: Path, data: Path, tmp_path: Path) -> None:
    """Against transformers' own logits on each whole text by itself, prompt masked, in one mean over answer tokens."""
    config = load_options(SftConfig, write_config(tmp_path, small_model, data, num_steps=1))
    policy = load_policy(config.model, config)
    encoder = PromptEncoder(config.model, policy, config)
    problems = train_problems(config)
    examples = Examples(config, encoder, problems)
    num_tokens = sum(examples.num_tokens(index) for index in range(4))
    batch = examples.pack(range(4), [1 / num_tokens] * 4)
    loss = answer_loss(policy(batch).logprobs, batch.weights)
    loss.backward()  # type: ignore[no-untyped-call]
    got = {name: parameter.grad.clone() for name, parameter in policy.hf.named_parameters()}
    policy.zero_grad()

    processor = AutoProcessor.from_pretrained(small_model)
    terms = []
    for index, problem in enumerate(problems):
        prompt = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{problem.problem}<|im_end|>\n"
        answer = f"<answer>{problem.solution}</answer><|im_end|>"
        image = Image.open(data / f"{index}.png")
        inputs = processor(text=[f"{prompt}<|im_start|>assistant\n{answer}"], images=[image], return_tensors="pt")
        target = processor.tokenizer(answer, return_tensors="pt")["input_ids"][0]
        assert torch.equal(inputs["input_ids"][0, -len(target) :], target)
        logits = policy.hf(**inputs).logits[0, -len(target) - 1 : -1]
        terms.append(F.cross_entropy(logits, target, reduction="sum"))
    naive = sum(terms) / num_tokens
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-6)
    for name, parameter in policy.hf.named_parameters():
        assert torch.allclose(got[name], parameter.grad, rtol=1e-3, atol=1e-6), name


@pytest.mark.engine
def test_a_model_learns_to_answer(learned: Path, data: Path) -> None:
    """The exported folder is what `model` takes, and greedy decoding says each solution and stops."""
    metrics = lines(learned / "metrics.jsonl")
    assert metrics[0]["loss"] > 4 and metrics[-1]["loss"] < 0.05
    assert metrics[0]["learning_rate"] == pytest.approx(2e-3 / 5) and metrics[-1]["learning_rate"] < 1e-5
    assert metrics[-1]["num_steps"] == 60 and metrics[-1]["tokens_per_second"] > 0
    before, after = lines(learned / "evaluations.jsonl")
    assert before["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-5), "the held-out file is the training file"
    assert after["loss"] < 0.05 and before["answer_probability"] < 0.01 and after["answer_probability"] > 0.8
    assert json.loads((learned / "status.json").read_text())["phase"] == "done"

    assert report([str(learned)]) == 0
    reported = json.loads((learned / "result.json").read_text())
    assert reported["heldout"]["after"]["loss"] == after["loss"] and reported["steps"] == 60

    assert check_model(str(learned / "model")) == learned / "model"
    model = AutoModelForImageTextToText.from_pretrained(learned / "model").eval()
    processor = AutoProcessor.from_pretrained(learned / "model")
    for index, (question, answer) in enumerate(ANSWERS.items()):
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.open(data / f"{index}.png")], return_tensors="pt")
        said = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(said) == f"<answer>{answer}</answer><|im_end|>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_model: Path, data: Path) -> Path:
    """The folder of a run of 6 steps in forwards of 3, so that no epoch ends with a step."""
    folder = tmp_path_factory.mktemp("whole")
    sft(write_config(folder, small_model, data, num_steps=6, gradient_accumulation_steps=2, **THREE, keep_last=5))
    return folder / "sft"


THREE = {"per_device_batch_size": 3, "checkpoint_every": 2}


@pytest.mark.engine
def test_an_interrupted_run_goes_on_to_the_same_parameters(
    whole: Path, small_model: Path, data: Path, tmp_path: Path
) -> None:
    """Bitwise, on one process, from the checkpoint of step 2, as a run leaves it that was killed after step 3."""
    shutil.copytree(whole / "checkpoints" / "step-000002", tmp_path / "sft" / "checkpoints" / "step-000002")
    expected = lines(whole / "metrics.jsonl")
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in expected[:3]))
    config = write_config(tmp_path, small_model, data, num_steps=6, gradient_accumulation_steps=2, **THREE)
    found = sft(config)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in found] == [line["loss"] for line in expected]
    want, have = (load_file(folder / "model" / "model.safetensors") for folder in (whole, tmp_path / "sft"))
    assert want.keys() == have.keys() and all(torch.equal(want[name], have[name]) for name in want)


@pytest.mark.engine
def test_two_ranks_take_the_steps_of_one(whole: Path, small_model: Path, data: Path, tmp_path: Path) -> None:
    """Started by the command itself, with ZeRO-2 and held-out work that is uneven: 4 problems in forwards of 3."""
    options = {**THREE, "num_steps": 3, "learner_processes": 2, "zero_stage": 2, "learner_master_port": free_port()}
    two = sft(write_config(tmp_path, small_model, data, **options))
    one = lines(whole / "metrics.jsonl")[:3]
    for first, second in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert second[name] == pytest.approx(first[name], rel=5e-3), name
    before = [lines(folder / "evaluations.jsonl")[0] for folder in (whole, tmp_path / "sft")]
    assert before[1]["loss"] == pytest.approx(before[0]["loss"], rel=1e-5) and before[1]["n"] == 4
    assert (tmp_path / "sft" / "model" / "model.safetensors").exists()


@pytest.mark.engine
def test_told_to_stop_it_leaves_a_checkpoint_of_its_last_step(small_model: Path, data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, small_model, data, num_steps=100_000, eval_at_start=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "mmr1_learner.supervised.command", str(config)], env=environment()
    )
    try:
        metrics = tmp_path / "sft" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    found = Checkpoints(tmp_path / "sft" / "checkpoints", 2).newest()
    assert found is not None and found[1].step == len(lines(metrics)) > 1
    assert found[1].next_position == found[1].step * 4
    assert not (tmp_path / "sft" / "model").exists()


def test_the_command_is_declared_and_described() -> None:
    """`mmr1` finds the learner's commands by entry points, and says what each is for."""
    declared = tomllib.loads((REPOSITORY / "learner" / "pyproject.toml").read_text())["project"]["entry-points"]
    commands = declared["mmr1.commands"]
    assert commands["sft"] == f"{command.__name__}:main" and commands["replay"] == f"{replay.__name__}:main"
    assert LEARNERS.keys() <= commands.keys()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "mmr1 sft needs --num_steps or --num_epochs"),
        ({"num_steps": 1, "model": "no/such/model"}, "does not exist"),
        ({"num_steps": 1, "answer_template": "defualt"}, "did you mean 'default'"),
        ({"num_steps": 1, "answer_key": "solutoin"}, "key 'solutoin' is missing; did you mean 'solution'"),
        ({"num_steps": 1, "num_epochs": 0}, "option 'num_epochs': Input should be greater than 0"),
        ({"num_steps": 1, "num_epoch": 2}, "unknown option 'num_epoch'; did you mean 'num_epochs'"),
    ],
)
def test_wrong_input_is_named_before_an_engine_loads(
    options: dict[str, Any], reason: str, small_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_train", lambda _: pytest.fail("an engine would be loaded"))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        command.main([str(write_config(tmp_path, small_model, data, **options))])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_remembers_whose_run_it_is(learned: Path) -> None:
    state = json.loads((learned / "checkpoints/step-000060/state.json").read_text())
    assert state["identity"]["seed"] == 0 and state["identity"]["train_file"].startswith("4 problems (")
    assert state["options"]["learning_rate"] == 2e-3 and "temperature" not in state["options"]


def test_answers_that_are_too_long(small_model: Path, data: Path, tmp_path: Path) -> None:
    config = load_options(
        SftConfig, write_config(tmp_path, small_model, data, num_steps=1), ["--max_completion_length", "5"]
    )
    policy = load_policy(config.model, config)
    encoder = PromptEncoder(config.model, policy, config)
    with pytest.raises(ConfigurationError, match=r"of row 2 has 6 tokens .* above max_completion_length 5"):
        Examples(config, encoder, train_problems(config))


def test_epochs_and_batches(small_model: Path, data: Path, tmp_path: Path) -> None:
    """Sequences are no groups: any batch will do, and a last step takes what is left of the epoch and goes on."""
    path = write_config(tmp_path, small_model, data, num_epochs=1.5, per_device_batch_size=3)
    config = load_options(SftConfig, path)
    assert config.for_problems(100, 1).num_steps == 50 and config.for_problems(100, 2).num_steps == 25
    assert config.for_problems(4, 1).num_steps == 2
    assert config.folder == tmp_path / "sft"


def test_rows_that_task_weights_leave_out_are_no_part_of_an_epoch(
    small_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads((data / "train.json").read_text())
    rows += [row | {"task": "ocr", "solution": str(row["solution"])} for row in rows]
    (data / "mixed.json").write_text(json.dumps(rows))
    weights = {"train_file": str(data / "mixed.json"), "task_weights": {"counting": 1, "ocr": 0}}
    path = write_config(tmp_path, small_model, data, num_epochs=3, per_device_batch_size=1, **weights)
    for name in ("Tuner", "RunFiles", "Checkpoints", "Trackers", "Examples", "check_prompt_lengths", "PromptEncoder"):
        monkeypatch.setattr(loop, name, Mock())
    monkeypatch.setattr(loop, "policy_of", Mock())
    run = loop._Run(load_options(SftConfig, path), Mock(world_size=1, is_first=False))
    assert run._config.num_steps == 3 * len(rows) // 2
