"""Before words, sight: the vision tower learns to tell which digit each image token shows, and where in it.

A linear layer on its tokens is trained with it and then thrown away. A digit's name in an answer says nothing of where
to look, so a model that has only answers to learn from needs many times as many pictures to know its first digit. This
file knows nothing of language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmr1.digits.canvas import PATCH, Drawn
from mmr1_learner.lessons import Array, patches

NOTHING = 10  # the class of a token that shows no digit
WARMUP_STEPS = 50


class Sights(NamedTuple):
    """B pictures of T image tokens: `canvases` [B, H, W] uint8, `labels` [B, T] int64, and `boxes` [B, T, 4] float32.

    A box is that of the digit in the token's square, in sides of the square from its corner; zeros where there is none.
    """

    canvases: Tensor
    labels: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> Sights:
        return Sights(*(tensor.to(device) for tensor in self))


def sights(drawn: Sequence[Drawn]) -> tuple[Array, ...]:
    """The arrays of Sights, for pictures of one size. A digit belongs to the token that its middle lies in."""
    height, width = drawn[0].pixels.shape
    rows, columns = height // PATCH, width // PATCH
    labels = np.full((len(drawn), rows * columns), NOTHING, np.int64)
    boxes = np.zeros((len(drawn), rows * columns, 4), np.float32)
    for picture, one in enumerate(drawn):
        for placement in one.placements:
            row, column = ((corner + placement.size // 2) // PATCH for corner in (placement.y, placement.x))
            corner = np.array([column, row, column, row], np.float32)
            labels[picture, row * columns + column] = placement.label
            boxes[picture, row * columns + column] = np.array(placement.box) / PATCH - corner
    return np.stack([one.pixels for one in drawn]), labels, boxes


def teach_sight(
    model: Any,
    image_processor: Any,
    supplies: Sequence[Iterator[Sights]],
    *,
    num_steps: int,
    learning_rate: float,
    optimizer_options: dict[str, Any],
) -> float | None:
    """Train the vision tower in place on a batch of every supply in each step.

    Returns:
        The share of digits that the last step's pictures showed and the tower named right; None without a step.
    """
    head = torch.nn.Linear(model.config.vision_config.out_hidden_size, NOTHING + 1 + 4, device=model.device)
    parameters = [*model.model.visual.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, **optimizer_options)
    right: list[Tensor] = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.zero_grad()
        right = [_lesson(model, head, image_processor, next(supply).to(model.device)) for supply in supplies]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return torch.cat(right).float().mean().item() if right else None


def _lesson(model: Any, head: torch.nn.Linear, image_processor: Any, batch: Sights) -> Tensor:
    """Adds the gradients of one batch; returns for each digit in it whether it was named right."""
    size = model.config.vision_config.patch_size
    frames, height, width = batch.canvases.shape
    film = torch.tensor([[frames, height // size, width // size]], device=batch.canvases.device)
    (features,) = model.model.get_image_features(patches(batch.canvases, image_processor), film).pooler_output
    names, boxes = head(features).split([NOTHING + 1, 4], dim=-1)  # [B * T, 11], [B * T, 4]
    labels, there = batch.labels.flatten(), batch.labels.flatten() != NOTHING
    loss = F.cross_entropy(names, labels) + F.l1_loss(boxes[there], batch.boxes.flatten(0, 1)[there])
    loss.backward()  # type: ignore[no-untyped-call]
    right: Tensor = names[there].argmax(-1) == labels[there]
    return right


__all__ = ["NOTHING", "Sights", "sights", "teach_sight"]
