"""The warm start: supervised training on freshly drawn problems until a model does a task by halves.

Training canvases are drawn on the fly from the training scans alone, and what is reached is measured on the held-out
files through the real image processor. This file knows nothing of reinforcement, queues or servers, nor of how a model
is built.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmr1.dataset import load_problems
from mmr1.digits.scans import read_scans
from mmr1.digits.tasks import TASKS, DigitTask
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1_learner.lessons import IGNORED, Encode, Encoder, Lesson, Supply, patches
from mmr1_learner.sight import Sights, sights, teach_sight

ADAMW: dict[str, Any] = {"weight_decay": 0.05, "betas": (0.9, 0.98)}
MAX_GRAD_NORM = 1.0
EVALUATE_EVERY = 10
PRINT_EVERY = 50


class Accuracy(NamedTuple):
    """Shares of the held-out problems answered exactly right: greedily, and in expectation at temperature 1."""

    greedy: float
    sampled: float


class Progress(NamedTuple):
    """A measurement: what each folder's held-out problems gave, and the mean loss per token of the step before."""

    step: int
    seconds: float
    loss: float | None
    accuracy: dict[str, Accuracy]

    @property
    def greedy(self) -> float:
        """The least of the tasks'."""
        return min(accuracy.greedy for accuracy in self.accuracy.values())

    def as_json(self) -> dict[str, Any]:
        shares = {name: accuracy._asdict() for name, accuracy in self.accuracy.items()}
        return {"step": self.step, "seconds": self.seconds, "loss": self.loss, "accuracy": shares}


class Course:
    """One `mmr1 data digits` folder: the task, its endless supply, and its held-out problems.

    Raises:
        ConfigurationError: the folder is not what that command writes.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.task, self.side = _manifest(data)
        self.scans = read_scans(data / "scans.npz").training()
        self.problems = load_problems(data / "eval.json", root=data)

    def supply(self, encode: Encode, *, batch_size: int, seed: int) -> Supply:
        return Supply(self.task, self.scans, self.side, encode, batch_size=batch_size, seed=seed)

    def held_out(self, encoder: Encoder, image_processor: Any) -> tuple[Tensor, Lesson]:
        """pixel_values [N * patches, D] of the held-out files, as a run's own processor makes them, and the lesson."""
        store = ImageStore(self.data)
        images = [store.open(store.ref(problem.images[0])) for problem in self.problems]
        width, height = images[0].size
        if width != self.side or any(image.size != (width, height) for image in images):
            raise ConfigurationError(f"{self.data}: images differ from the manifest's canvas; make the data again")
        pixel_values = image_processor(images=images, return_tensors="pt")["pixel_values"]
        canvases = torch.empty(len(images), height, width, dtype=torch.uint8)  # of which only the shape is looked at
        return pixel_values, encoder.lesson(canvases, [(one.problem, one.solution) for one in self.problems])


class WarmStart:
    """One or more `mmr1 data digits` folders, whose problems are trained on in equal parts.

    Raises:
        ConfigurationError: a folder is not what that command writes, or two are of one task.
    """

    def __init__(self, folders: Sequence[Path], *, batch_size: int, seed: int, workers: int | None = None) -> None:
        self.courses = [Course(folder) for folder in folders]
        of_task: dict[str, Path] = {}
        for course in self.courses:
            name = course.task.name
            if name in of_task:  # both would draw the same problems, and only one be measured
                raise ConfigurationError(
                    f"--data {of_task[name]} and --data {course.data} are both of the task {name}; give one of them"
                )
            of_task[name] = course.data
        self.batch_size, self.seed = batch_size, seed
        most = max(1, min(16, (os.cpu_count() or 1) - 1))
        self.workers = -(-most // len(self.courses)) if workers is None else workers

    def train(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        num_steps: int,
        learning_rate: float,
        target_accuracy: float | None,
        warmup_steps: int = 200,
        sight_steps: int = 0,
        answer_tokens: int | None = None,
    ) -> list[Progress]:
        """Train in place, on the model's device: `sight_steps` the vision tower alone, and then the whole until the
        least held-out greedy accuracy reaches the target, if there is one, or `num_steps` run out.

        With `answer_tokens`, no more than so many tokens of an answer are trained on: a small model finds out which of
        several digits is asked for when its box's first number is all there is to learn, and not among all its tokens.

        Returns:
            The measurements, one every 10 steps and at the end; at least one.
        """
        if sight_steps:
            self._teach_sight(model, image_processor, sight_steps, learning_rate)
        encoder = Encoder(tokenizer)
        lessons = [starmap(Lesson, batches) for batches in self._batches(encoder.arrays)]
        held_out = {course.task.name: course.held_out(encoder, image_processor) for course in self.courses}
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, **ADAMW)
        history: list[Progress] = []
        started, loss = time.monotonic(), None
        for step in range(num_steps + 1):
            if step % EVALUATE_EVERY == 0 or step == num_steps:
                shares = {name: accuracy(model, *held, batch_size=self.batch_size) for name, held in held_out.items()}
                last_loss = None if loss is None else loss.item()
                history.append(Progress(step, round(time.monotonic() - started, 1), last_loss, shares))
                reached = target_accuracy is not None and history[-1].greedy >= target_accuracy
                if step % PRINT_EVERY == 0 or reached or step == num_steps:
                    _print(history[-1])
                if reached:
                    break
            if step == num_steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / warmup_steps)
            batches = [next(supply).first_tokens(answer_tokens).to(model.device) for supply in lessons]
            loss = _step(model, optimizer, image_processor, batches)
        return history

    def _teach_sight(self, model: Any, image_processor: Any, num_steps: int, learning_rate: float) -> None:
        supplies = [starmap(Sights, batches) for batches in self._batches(sights)]
        right = teach_sight(
            model,
            image_processor,
            supplies,
            num_steps=num_steps,
            learning_rate=learning_rate,
            optimizer_options=ADAMW,
        )
        print(f"sight: {right:.3f} of the digits named right after {num_steps} steps", flush=True)

    def _batches(self, encode: Encode) -> list[Iterator[tuple[Tensor, ...]]]:
        """The endless batches of every course."""
        return [
            course.supply(encode, batch_size=self.batch_size, seed=self.seed).batches(self.workers)
            for course in self.courses
        ]


def answer_logits(model: Any, pixel_values: Tensor, lesson: Lesson) -> Tensor:
    """Logits [B, A, V] for the tokens of the answers, given each row's prompt and image."""
    batch, length = lesson.answers.shape
    ids = torch.cat([lesson.prompts, lesson.answers.clamp(min=0)], dim=1)  # [B, P + A]
    size = model.config.vision_config.patch_size
    height, width = lesson.canvases.shape[1] // size, lesson.canvases.shape[2] // size
    positions, _ = model.model.get_rope_index(  # of one row: they are the same in all
        input_ids=ids[:1],
        mm_token_type_ids=(ids[:1] == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, height, width]], device=ids.device),
        attention_mask=torch.ones_like(ids[:1]),
    )
    output = model(
        input_ids=ids,
        position_ids=positions.expand(-1, batch, -1),
        pixel_values=pixel_values,
        # As the frames of one film, which do not see each other either: transformers goes through images in Python.
        image_grid_thw=torch.tensor([[batch, height, width]], device=ids.device),
        use_cache=False,
        logits_to_keep=length + 1,
    )
    return cast(Tensor, output.logits[:, :-1])


@torch.no_grad()
def accuracy(model: Any, pixel_values: Tensor, lesson: Lesson, batch_size: int = 256) -> Accuracy:
    """How many of the lesson's problems the model answers exactly right.

    Feeding the right answer decides both shares: greedy decoding gives it exactly when every token of it is the most
    likely one after those before it, and sampling gives it with the product of their probabilities.
    """
    rows = pixel_values.view(len(lesson.prompts), -1, pixel_values.shape[-1])
    greedy, sampled = 0.0, 0.0
    for begin in range(0, len(rows), batch_size):
        part = Lesson(*(tensor[begin : begin + batch_size] for tensor in lesson)).to(model.device)
        logits = answer_logits(model, rows[begin : begin + batch_size].flatten(0, 1).to(model.device), part)
        padding = part.answers == IGNORED
        greedy += ((logits.argmax(-1) == part.answers) | padding).all(1).sum().item()
        chosen = logits.log_softmax(-1).gather(-1, part.answers.clamp(min=0)[..., None])[..., 0]  # [b, A]
        sampled += chosen.masked_fill(padding, 0.0).sum(1).exp().sum().item()
    return Accuracy(greedy / len(rows), sampled / len(rows))


def _step(model: Any, optimizer: torch.optim.Optimizer, image_processor: Any, lessons: Sequence[Lesson]) -> Tensor:
    """One optimizer step on the answers' tokens; returns the mean of the lessons' mean losses per token."""
    optimizer.zero_grad()
    total = torch.zeros((), device=model.device)
    for lesson in lessons:
        logits = answer_logits(model, patches(lesson.canvases, image_processor), lesson)
        loss = F.cross_entropy(logits.flatten(0, 1), lesson.answers.flatten(), ignore_index=IGNORED) / len(lessons)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return total


def _manifest(data: Path) -> tuple[DigitTask, int]:
    """(task, canvas) of a folder."""
    try:
        manifest: dict[str, Any] = json.loads((data / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{data}: no readable manifest.json ({error}); make it with `mmr1 data digits`"
        ) from None
    task, side = TASKS.get(str(manifest.get("task"))), manifest.get("canvas")
    if task is None or not isinstance(side, int):
        raise ConfigurationError(f"{data}: its manifest is not of drawn problems; make it with `mmr1 data digits`")
    task.check_canvas(side)
    return task, side


def _print(progress: Progress) -> None:
    loss = "  -  " if progress.loss is None else f"{progress.loss:.3f}"
    shares = "  ".join(f"{name} {a.greedy:.3f} ({a.sampled:.3f})" for name, a in progress.accuracy.items())
    print(f"step {progress.step:4d}  {progress.seconds:6.1f} s  loss {loss}  held-out {shares}", flush=True)


__all__ = ["Accuracy", "Course", "Progress", "WarmStart", "accuracy", "answer_logits"]
