"""The small model: its tokenizer, its processor path, its warm start, and that everything loads the folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from mmr1.chat_template import ChatTemplate
from mmr1.digits.counting import QUESTION, draw, write_counting
from mmr1.digits.scans import load_scans
from mmr1.records import Problem
from mmr1.templates import QUESTIONS, Templates, render, render_answer
from mmr1_learner.sft import Supply, WarmStart, accuracy, answer_logits, encode, patches
from mmr1_learner.tiny_model import TAGS, build, build_image_processor, build_model, build_tokenizer, main


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_model")
    build(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_counting(folder, load_scans(), num_train=1, num_eval=6, seed=0, side=112)
    return folder


def counting_problem(solution: int = 3, images: tuple[str, ...] = ("a.png",)) -> Problem:
    return Problem(0, QUESTION, solution, images, "counting")


def test_prompts_and_answers_are_short() -> None:
    tokenizer = build_tokenizer([QUESTION])
    chat = ChatTemplate(tokenizer.chat_template)
    assert len(tokenizer(render(counting_problem(), Templates(), chat))["input_ids"]) <= 25
    for count in range(10):
        ids = tokenizer(render_answer(counting_problem(count), Templates()))["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == ["<answer>", str(count), "</answer>"]
    assert len(tokenizer("1234567")["input_ids"]) == 7


@pytest.mark.parametrize("text", ["<answer>12</answer>", "Größe 数 🎈\n\t{x}", "  two  spaces ", *TAGS])
def test_any_text_survives_the_tokenizer(model_folder: Path, text: str) -> None:
    tokenizer = AutoProcessor.from_pretrained(model_folder).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("question", sorted(QUESTIONS))
@pytest.mark.parametrize("images", [("a.png",), ("a.png", "b.png")])
def test_prompts_equal_those_of_transformers(
    model_folder: Path, system: str, question: str, images: tuple[str, ...]
) -> None:
    templates = Templates(system_prompt=system, question=QUESTIONS[question])
    ours = render(counting_problem(images=images), templates, ChatTemplate.load(model_folder))
    text = str(QUESTIONS[question]).replace("{problem}", QUESTION)
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
    processor = AutoProcessor.from_pretrained(model_folder)
    assert ours == processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.count("<|vision_start|><|image_pad|><|vision_end|>") == len(images)


@pytest.mark.parametrize("side", [112, 168])
def test_patches_equal_those_of_the_processor(side: int) -> None:
    rng = np.random.default_rng(0)
    canvases = np.stack([draw(rng, load_scans(), side)[0] for _ in range(3)])
    canvases[0] = rng.integers(0, 256, (side, side))
    processor = build_image_processor()
    images = [Image.fromarray(canvas).convert("RGB") for canvas in canvases]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(patches(torch.from_numpy(canvases), processor), expected, atol=1e-6, rtol=0)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    def first_batches(workers: int) -> list[torch.Tensor]:
        supply = Supply(load_scans(), 112, batch_size=4, seed=1)
        loader = torch.utils.data.DataLoader(supply, batch_size=None, num_workers=workers)
        return [canvases for canvases, _ in (batch for batch, _ in zip(loader, range(3), strict=False))]

    alone, shared = first_batches(0), first_batches(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_training_sees_what_a_run_sees(model_folder: Path) -> None:
    """The logits of the warm start's short cut equal those of the whole processor and the model's own positions."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder).eval()
    rng = np.random.default_rng(0)
    canvases = np.stack([draw(rng, load_scans(), 112)[0] for _ in range(2)])
    encoded = encode(model, processor.tokenizer, 112)
    answers = encoded.answers[[2, 4]]
    with torch.no_grad():
        ours = answer_logits(model, encoded, patches(torch.from_numpy(canvases), processor.image_processor), answers)
        for row, count in enumerate((3, 5)):
            text = render(counting_problem(), Templates(), ChatTemplate.load(model_folder))
            text += render_answer(counting_problem(count), Templates()) + "<|im_end|>"
            image = Image.fromarray(canvases[row]).convert("RGB")
            whole = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0]
            torch.testing.assert_close(ours[row], whole[-answers.shape[1] - 1 : -1], atol=1e-5, rtol=0)


def test_accuracy_is_that_of_decoding(model_folder: Path) -> None:
    """A model that always says 3 is right exactly where the answer is 3, greedily and sampled."""
    tokenizer = build_tokenizer([QUESTION])
    model = build_model(tokenizer, seed=0)
    encoded = encode(model, tokenizer, 112)
    target = encoded.answers[2]

    def always_three(input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        logits = torch.zeros(len(input_ids), len(target) + 1, len(tokenizer))
        logits[:, torch.arange(len(target)), target] = 50.0
        return SimpleNamespace(logits=logits)

    always_three.config = model.config  # type: ignore[attr-defined]
    pixel_values = torch.zeros(4 * 64, 1176)
    greedy, sampled = accuracy(always_three, encoded, pixel_values, torch.tensor([3, 1, 3, 7]), batch_size=3)
    assert greedy == 0.5 and sampled == pytest.approx(0.5)


def test_a_step_learns_and_repeats(data: Path) -> None:
    def run() -> tuple[list[float], torch.Tensor]:
        tokenizer = build_tokenizer([QUESTION])
        model = build_model(tokenizer, seed=0)
        start = WarmStart(data, batch_size=4, seed=0, workers=0)
        options = {"num_steps": 12, "learning_rate": 5e-2, "target_accuracy": 2.0}
        history = start.train(model, tokenizer, build_image_processor(), **options)
        return [p.loss for p in history if p.loss is not None], model.lm_head.weight.detach()

    (losses, weight), (again, same) = run(), run()
    assert losses == again and torch.equal(weight, same)
    assert losses[-1] < 4.0 < 5.0  # log(315) = 5.75 before


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert main([]) == 2
    assert "mmr1 data digits" in (error := capsys.readouterr().err) and error.count("mmr1: error: ") == 2
    if not torch.cuda.is_available():
        assert main(["--out", "x", "--device", "cuda"]) == 2
        assert "sees no GPU" in capsys.readouterr().err
