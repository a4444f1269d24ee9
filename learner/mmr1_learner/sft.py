"""The warm start: supervised training on freshly drawn problems until a model is right about half the time.

Prompts and answers are rendered by the templates that a run uses, training canvases are drawn on the fly from the
training scans alone, and accuracy is measured on the held-out file through the real image processor. This file knows
nothing of reinforcement, queues or servers, nor of how a model is built.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmr1.chat_template import ChatTemplate
from mmr1.dataset import load_problems
from mmr1.digits.counting import MOST_DIGITS, QUESTION, SUPPLY_STREAM, check_side, draw
from mmr1.digits.scans import Scans, read_scans
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Problem
from mmr1.templates import IMAGE_PLACEHOLDER, Templates, render, render_answer

WARMUP_STEPS = 200
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
MAX_GRAD_NORM = 1.0
EVALUATE_EVERY = 10
PRINT_EVERY = 50


class Progress(NamedTuple):
    """A measurement: accuracies are shares of the held-out problems answered exactly right.

    `sampled` is the expected share at temperature 1: the mean probability of the right answer.
    """

    step: int
    seconds: float
    loss: float | None
    greedy: float
    sampled: float


class Encoded(NamedTuple):
    """What all problems share, as ids.

    `prompt` [P], `answers` [MOST_DIGITS, A] (row i answers i + 1, end of turn included), `positions` [3, 1, P + A].
    """

    prompt: Tensor
    answers: Tensor
    positions: Tensor


class Supply(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of drawn problems: canvases [B, side, side] uint8 and counts [B].

    Batch i depends on the seed and on i alone, however many processes draw.
    """

    def __init__(self, scans: Scans, side: int, batch_size: int, seed: int) -> None:
        self.scans, self.side, self.batch_size, self.seed = scans, side, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            rng = np.random.default_rng([self.seed, SUPPLY_STREAM, number])
            drawn = [draw(rng, self.scans, self.side) for _ in range(self.batch_size)]
            canvases = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
            yield canvases, torch.tensor([len(placements) for _, placements in drawn])
            number += step


class WarmStart:
    """The counting problems of one `mmr1 data digits` folder, ready to train on.

    Raises:
        ConfigurationError: the folder is not what that command writes.
    """

    def __init__(self, data: Path, *, batch_size: int, seed: int, workers: int | None = None) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.workers = max(1, min(16, (os.cpu_count() or 1) - 1)) if workers is None else workers
        manifest = _manifest(data)
        self.side: int = manifest["canvas"]
        check_side(self.side)
        self.scans = read_scans(data / "scans.npz").training()
        self.held_out = load_problems(data / "eval.json", root=data)

    def train(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        num_steps: int,
        learning_rate: float,
        target_accuracy: float,
    ) -> list[Progress]:
        """Train in place, on the model's device, until held-out greedy accuracy reaches the target or steps run out.

        Returns:
            The measurements, one every 10 steps and at the end; at least one.
        """
        device = model.device
        encoded = encode(model, tokenizer, self.side)
        batches = iter(
            DataLoader(
                Supply(self.scans, self.side, self.batch_size, self.seed),
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=4 if self.workers else None,
            )
        )
        held_out = self._held_out_tensors(image_processor)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, betas=BETAS)
        history: list[Progress] = []
        started, loss = time.monotonic(), None
        for step in range(num_steps + 1):
            if step % EVALUATE_EVERY == 0 or step == num_steps:
                greedy, sampled = accuracy(model, encoded, *held_out, batch_size=self.batch_size)
                last_loss = None if loss is None else loss.item()
                history.append(Progress(step, round(time.monotonic() - started, 1), last_loss, greedy, sampled))
                reached = greedy >= target_accuracy
                if step % PRINT_EVERY == 0 or reached or step == num_steps:
                    _print(history[-1])
                if reached:
                    break
            if step == num_steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
            canvases, counts = next(batches)
            loss = _step(model, optimizer, encoded, patches(canvases.to(device), image_processor), counts.to(device))
        return history

    def _held_out_tensors(self, image_processor: Any) -> tuple[Tensor, Tensor]:
        """(pixel_values [N * patches, D], counts [N]) of the held-out files, as a run's own processor makes them."""
        store = ImageStore(self.data)
        images = [store.open(store.ref(problem.images[0])) for problem in self.held_out]
        if any(image.size != (self.side, self.side) for image in images):
            raise ConfigurationError(f"{self.data}: images differ from the manifest's canvas; make the data again")
        pixel_values = image_processor(images=images, return_tensors="pt")["pixel_values"]
        return pixel_values, torch.tensor([int(problem.solution) for problem in self.held_out])


def encode(model: Any, tokenizer: Any, side: int) -> Encoded:
    """The counting prompt and its answers as the run will render them, on the model's device."""
    templates, chat = Templates(), ChatTemplate(tokenizer.chat_template, name="the model")
    problems = [Problem(i, QUESTION, i + 1, ("image",), "counting") for i in range(MOST_DIGITS)]
    vision = model.config.vision_config
    grid = side // vision.patch_size
    num_image_tokens = (grid // vision.spatial_merge_size) ** 2
    text = render(problems[0], templates, chat).replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER * num_image_tokens)
    prompt = torch.tensor(tokenizer(text)["input_ids"])  # [P]
    turn_end = tokenizer.eos_token
    answers = torch.tensor(
        [tokenizer(render_answer(problem, templates) + turn_end)["input_ids"] for problem in problems]
    )  # [MOST_DIGITS, A]
    row = torch.cat([prompt, answers[0]])[None]
    positions, _ = model.model.get_rope_index(
        input_ids=row,
        mm_token_type_ids=(row == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, grid, grid]]),
        attention_mask=torch.ones_like(row),
    )
    return Encoded(prompt.to(model.device), answers.to(model.device), positions.to(model.device))


def patches(canvases: Tensor, image_processor: Any) -> Tensor:
    """Gray canvases [B, S, S] uint8 to pixel_values [B * patches, D], as the processor gives for S a multiple of 28.

    Runs on the canvases' device, thousands of times faster than image by image.
    """
    batch, side = canvases.shape[0], canvases.shape[-1]
    size, merge, repeat = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    mean = torch.tensor(image_processor.image_mean, device=canvases.device).view(1, 3, 1, 1)
    std = torch.tensor(image_processor.image_std, device=canvases.device).view(1, 3, 1, 1)
    pixels: Tensor = (canvases[:, None].float() * image_processor.rescale_factor - mean) / std  # [B, 3, S, S]
    blocks = side // (size * merge)
    pixels = pixels.view(batch, 3, blocks, merge, size, blocks, merge, size).permute(0, 2, 5, 3, 6, 1, 4, 7)
    pixels = pixels.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, repeat, -1, -1)  # time comes after the channel
    return pixels.reshape(batch * (side // size) ** 2, 3 * repeat * size * size)


def answer_logits(model: Any, encoded: Encoded, pixel_values: Tensor, answers: Tensor) -> Tensor:
    """Logits [B, A, V] for the tokens of `answers` [B, A], given the prompt and each row's image."""
    batch, length = answers.shape
    ids = torch.cat([encoded.prompt.expand(batch, -1), answers], dim=1)  # [B, P + A]
    vision = model.config.vision_config
    num_patches = pixel_values.shape[0] // batch
    grid = round(num_patches**0.5)
    assert grid * grid == num_patches and grid % vision.spatial_merge_size == 0
    output = model(
        input_ids=ids,
        position_ids=encoded.positions.expand(-1, batch, -1),
        pixel_values=pixel_values,
        image_grid_thw=torch.tensor([[1, grid, grid]], device=ids.device).expand(batch, -1),
        use_cache=False,
        logits_to_keep=length + 1,
    )
    return cast(Tensor, output.logits[:, :-1])


@torch.no_grad()
def accuracy(
    model: Any, encoded: Encoded, pixel_values: Tensor, counts: Tensor, batch_size: int = 256
) -> tuple[float, float]:
    """Shares answered exactly: greedily, and in expectation when sampled at temperature 1.

    Feeding the right answer decides both: greedy decoding gives it exactly when every token of it is the most likely
    one after those before it, and sampling gives it with the product of their probabilities.
    """
    rows = pixel_values.view(len(counts), -1, pixel_values.shape[-1])
    greedy, sampled = 0.0, 0.0
    for begin in range(0, len(counts), batch_size):
        chunk = slice(begin, begin + batch_size)
        answers = encoded.answers[counts[chunk].to(encoded.answers.device) - 1]
        values = rows[chunk].reshape(-1, rows.shape[-1]).to(answers.device)
        logits = answer_logits(model, encoded, values, answers)
        greedy += (logits.argmax(-1) == answers).all(1).sum().item()
        chosen = logits.log_softmax(-1).gather(-1, answers[..., None])  # [b, A, 1]
        sampled += chosen.sum((1, 2)).exp().sum().item()
    return greedy / len(counts), sampled / len(counts)


def _step(model: Any, optimizer: torch.optim.Optimizer, encoded: Encoded, values: Tensor, counts: Tensor) -> Tensor:
    """One optimizer step on the answers' tokens; returns the mean loss per token."""
    answers = encoded.answers[counts - 1]
    logits = answer_logits(model, encoded, values, answers)
    loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.detach()


def _manifest(data: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((data / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{data}: no readable manifest.json ({error}); make it with `mmr1 data digits`"
        ) from None
    if manifest.get("task") != "counting" or not isinstance(manifest.get("canvas"), int):
        raise ConfigurationError(f"{data}: its manifest is not of counting problems; make it with `mmr1 data digits`")
    return manifest


def _print(progress: Progress) -> None:
    loss = "  -  " if progress.loss is None else f"{progress.loss:.3f}"
    print(
        f"step {progress.step:4d}  {progress.seconds:6.1f} s  loss {loss}  "
        f"held-out greedy {progress.greedy:.3f}  sampled {progress.sampled:.3f}",
        flush=True,
    )


__all__ = ["Encoded", "Progress", "Supply", "WarmStart", "accuracy", "answer_logits", "encode", "patches"]
