"""The small model: its tokenizer, its processor path, its warm start, and that everything loads the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from mmr1.chat_template import ChatTemplate
from mmr1.config import load_config
from mmr1.digits.counting import QUESTION
from mmr1.digits.files import write_problems
from mmr1.digits.scans import load_scans
from mmr1.digits.tasks import TASKS
from mmr1.records import Problem
from mmr1.templates import QUESTIONS, Templates, render, render_answer
from mmr1_learner.lessons import IGNORED, Encoder, Lesson, Supply, patches
from mmr1_learner.sft import WarmStart, accuracy, answer_logits
from mmr1_learner.sight import NOTHING, sights
from mmr1_learner.tiny_model import (
    TAGS,
    build,
    build_image_processor,
    build_model,
    build_tokenizer,
    main,
    tokenizer_for,
)

REPOSITORY = Path(__file__).resolve().parents[3]
READER = ("ocr", "grounding", "detection")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_model")
    build(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), "counting")


def write(folder: Path, name: str) -> Path:
    write_problems(folder, TASKS[name], load_scans(), num_train=1, num_eval=6, seed=0, side=TASKS[name].canvas)
    return folder


def lesson(name: str, encoder: Encoder, number: int) -> Lesson:
    task = TASKS[name]
    drawn = [task.draw(np.random.default_rng(i), load_scans(), task.canvas) for i in range(number)]
    return Lesson(*map(torch.from_numpy, encoder.arrays(drawn)))


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


def test_boxes_are_hardly_longer_than_their_digits() -> None:
    tokenizer = tokenizer_for([TASKS[name] for name in READER])
    box = {"bbox_2d": [1, 20, 33, 44], "label": "5"}
    answers = {"12345": 7, "[1, 20, 33, 44]": 2 + 7 + 3 + 2, str([box, box]).replace("'", '"'): 2 + 2 * (7 + 3 + 3) + 1}
    for text, length in answers.items():
        ids = tokenizer(f"<answer>{text}</answer>")["input_ids"]
        assert len(ids) == length and tokenizer.decode(ids) == f"<answer>{text}</answer>"
    for name in READER:
        assert len({len(tokenizer(question)["input_ids"]) for question in TASKS[name].questions}) == 1


@pytest.mark.parametrize("name", READER)
def test_the_demos_prompts_and_answers_fit_their_limits(name: str) -> None:
    config = load_config(REPOSITORY / "examples" / f"{name}.yaml")
    asked = lesson(name, Encoder(tokenizer_for([TASKS[name] for name in READER])), 64)
    assert asked.prompts.shape[1] <= config.max_prompt_length
    assert asked.answers.shape[1] <= config.max_completion_length
    assert (config.task, config.run) == (name, f"demo-{name}") and config.run_dir == Path("runs") / config.run


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


@pytest.mark.parametrize("size", [(112, 112), (28, 140), (84, 84)])
def test_patches_equal_those_of_the_processor(size: tuple[int, int]) -> None:
    canvases = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8)
    processor = build_image_processor()
    images = [Image.fromarray(canvas).convert("RGB") for canvas in canvases]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(patches(torch.from_numpy(canvases), processor), expected, atol=1e-6, rtol=0)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    encoder = Encoder(tokenizer_for([TASKS["detection"]]))

    def first_batches(workers: int) -> list[Lesson]:
        supply = Supply(TASKS["detection"], load_scans(), 84, encoder.arrays, batch_size=4, seed=1)
        return [Lesson(*batch) for batch, _ in zip(supply.batches(workers), range(3), strict=False)]

    alone, shared = first_batches(0), first_batches(2)
    for ours, theirs in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(alone[0].canvases, alone[1].canvases)


@pytest.mark.parametrize("name", [*READER, "counting"])
def test_training_sees_what_a_run_sees(model_folder: Path, name: str) -> None:
    """The logits of the warm start's short cuts equal those of the whole processor and the model's own positions."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder).eval()
    task = TASKS[name]
    drawn = [task.draw(np.random.default_rng(i), load_scans(), task.canvas) for i in range(2)]
    ours = Lesson(*map(torch.from_numpy, Encoder(processor.tokenizer).arrays(drawn)))
    with torch.no_grad():
        logits = answer_logits(model, patches(ours.canvases, processor.image_processor), ours)
        for row, one in enumerate(drawn):
            problem = Problem(0, one.problem, one.solution, ("a.png",), task.task)
            text = render(problem, Templates(), ChatTemplate.load(model_folder))
            text += render_answer(problem, Templates()) + "<|im_end|>"
            image = Image.fromarray(one.pixels).convert("RGB")
            whole = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0]
            length = int((ours.answers[row] != IGNORED).sum())
            torch.testing.assert_close(logits[row, :length], whole[-length - 1 : -1], atol=1e-5, rtol=0)


def test_accuracy_is_that_of_decoding() -> None:
    """A model that always says 3 is right exactly where the answer is 3, greedily and sampled; padding is no answer."""
    tokenizer = build_tokenizer([QUESTION])
    model = build_model(tokenizer, seed=0)
    canvases = torch.zeros(4, 112, 112, dtype=torch.uint8)
    asked = Encoder(tokenizer).lesson(canvases, [(QUESTION, count) for count in (3, 1, 3, 10)])
    target = asked.answers[0, :4]

    def always_three(input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        logits = torch.zeros(len(input_ids), asked.answers.shape[1] + 1, len(tokenizer))
        logits[:, torch.arange(len(target)), target] = 50.0
        return SimpleNamespace(logits=logits)

    always_three.config = model.config  # type: ignore[attr-defined]
    always_three.model = model.model  # type: ignore[attr-defined]
    always_three.device = model.device  # type: ignore[attr-defined]
    greedy, sampled = accuracy(always_three, torch.zeros(4 * 64, 1176), asked, batch_size=3)
    assert greedy == 0.5 and sampled == pytest.approx(0.5)


def test_each_token_is_told_what_it_shows() -> None:
    task = TASKS["detection"]
    drawn = [task.draw(np.random.default_rng(i), load_scans(), task.canvas) for i in range(8)]
    canvases, labels, boxes = sights(drawn)
    assert canvases.shape == (8, 84, 84) and labels.shape == (8, 9) and boxes.shape == (8, 9, 4)
    for one, names, places in zip(drawn, labels, boxes, strict=True):
        tokens = np.flatnonzero(names != NOTHING)
        assert len(tokens) == len(one.placements) and (places[names == NOTHING] == 0).all()
        shown = [(names[t], *(places[t] * 28 + np.tile([t % 3, t // 3], 2) * 28).round().astype(int)) for t in tokens]
        assert sorted(shown) == sorted((p.label, *p.box) for p in one.placements)


def test_a_step_learns_and_repeats(data: Path) -> None:
    def run() -> tuple[list[float], torch.Tensor]:
        tokenizer = build_tokenizer([QUESTION])
        model = build_model(tokenizer, seed=0)
        start = WarmStart([data], batch_size=4, seed=0, workers=0)
        options = {"num_steps": 12, "learning_rate": 5e-2, "target_accuracy": 2.0}
        history = start.train(model, tokenizer, build_image_processor(), **options)
        return [p.loss for p in history if p.loss is not None], model.lm_head.weight.detach()

    (losses, weight), (again, same) = run(), run()
    assert losses == again and torch.equal(weight, same)
    assert losses[-1] < 4.0 < 5.0  # log(315) = 5.75 before


def test_several_tasks_are_learned_together(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, name) for name in READER]
    out = tmp_path / "model"
    arguments = [argument for folder in folders for argument in ("--data", str(folder))]
    arguments += ["--steps", "2", "--sight-steps", "2", "--batch-size", "4", "--workers", "0", "--target-accuracy", "0"]
    assert main([*arguments, "--out", str(out)]) == 0
    (first,) = json.loads((out / "warm_start.json").read_text())
    assert first["step"] == 0 and set(first["accuracy"]) == set(READER)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out)
    untouched = build_model(tokenizer_for([TASKS[name] for name in READER]), seed=0)
    same = {n: torch.equal(p, q) for (n, p), q in zip(model.named_parameters(), untouched.parameters(), strict=True)}
    assert not same["model.visual.blocks.0.attn.qkv.weight"] and same["model.language_model.norm.weight"]
    arguments[arguments.index("--sight-steps") + 1] = "0"
    assert main([*arguments, "--start", str(out), "--out", str(tmp_path / "more")]) == 0
    assert json.loads((tmp_path / "more" / "warm_start.json").read_text())[0] == first
    assert "local" not in (tmp_path / "more" / "tokenizer_config.json").read_text()
    for name in ("model.safetensors", "tokenizer.json"):  # the target was reached before the first step
        assert (tmp_path / "more" / name).read_bytes() == (out / name).read_bytes()


def test_no_more_than_the_first_tokens_of_an_answer_are_trained_on() -> None:
    tokenizer = tokenizer_for([TASKS["grounding"]])
    drawn = [TASKS["grounding"].draw(np.random.default_rng(i), load_scans(), 84) for i in range(8)]
    lesson = Lesson(*map(torch.from_numpy, Encoder(tokenizer).arrays(drawn)))
    first = lesson.first_tokens(4)
    assert torch.equal(first.answers[:, :4], lesson.answers[:, :4]) and (first.answers[:, 4:] == IGNORED).all()
    texts = [tokenizer.decode(row[:4]) for row in first.answers]
    assert texts == [f"<answer>[{one.solution[0]}, "[: len(text)] for one, text in zip(drawn, texts, strict=True)]
    assert lesson.first_tokens(None) is lesson
    assert torch.equal(lesson.first_tokens(1000).answers, lesson.answers)


def test_training_on_first_tokens_leaves_what_comes_later_unlearned(tmp_path: Path) -> None:
    """With one token to learn its loss falls to nothing; that of whole answers stays where it was."""
    folder = write(tmp_path / "grounding", "grounding")

    def losses(answer_tokens: int | None) -> list[float]:
        tokenizer = tokenizer_for([TASKS["grounding"]])
        model = build_model(tokenizer, seed=0, initializer_range=0.08)
        start = WarmStart([folder], batch_size=4, seed=0, workers=0)
        options = {"num_steps": 20, "learning_rate": 1e-2, "target_accuracy": None, "warmup_steps": 1}
        history = start.train(model, tokenizer, build_image_processor(), answer_tokens=answer_tokens, **options)
        return [p.loss for p in history if p.loss is not None]

    assert losses(1)[-1] < 0.01 < 0.5 < losses(None)[-1]


def test_weights_are_drawn_with_the_deviation_that_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "grounding", "grounding")
    arguments = ["--data", str(folder), "--steps", "0", "--batch-size", "4", "--workers", "0", "--out"]
    for name, more, deviation in (("usual", [], 0.02), ("wide", ["--initializer-range", "0.08"], 0.08)):
        assert main([*arguments, str(tmp_path / name), *more]) == 0
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / name)
        for weight in (
            model.model.language_model.layers[1].self_attn.q_proj.weight,
            model.model.visual.blocks[0].attn.qkv.weight,
            model.get_input_embeddings().weight,
        ):
            assert weight.std().item() == pytest.approx(deviation, rel=0.05)


def test_the_page_draws_as_many_held_out_problems_as_the_readers_shares_are_of() -> None:
    page = (REPOSITORY / "docs" / "demo.md").read_text()
    (drawn,) = re.findall(r"mmr1 data digits --task \$task --num-eval (\d+) --out data/digits/\$task\n", page)
    assert f"of {drawn} held-out problems a task" in page
    measured = json.loads((REPOSITORY / "examples" / "tiny_reader" / "warm_start.json").read_text())
    right = [int(drawn) * share["greedy"] for step in measured for share in step["accuracy"].values()]
    assert max(right) > 0 and all(number == pytest.approx(round(number)) for number in right)


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert main([]) == 2
    assert "mmr1 data digits" in (error := capsys.readouterr().err) and error.count("mmr1: error: ") == 2
    folder = write(tmp_path / "ocr", "ocr")
    assert main(["--out", "x", "--data", str(folder), "--start", str(tmp_path / "none")]) == 2
    assert f"--start {tmp_path / 'none'}" in capsys.readouterr().err
    other = write(tmp_path / "ocr_again", "ocr")
    assert main(["--out", str(tmp_path / "out"), "--data", str(folder), "--data", str(other), "--steps", "0"]) == 2
    assert f"--data {folder} and --data {other} are both of the task ocr" in capsys.readouterr().err
    for option, value in (("--answer-tokens", "0"), ("--initializer-range", "0"), ("--initializer-range", "nan")):
        assert main(["--out", "x", option, value]) == 2
        assert f"{option}: {value}: give" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["--out", "x", "--device", "cuda"]) == 2
        assert "sees no GPU" in capsys.readouterr().err
