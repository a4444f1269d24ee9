"""Groups to tensors: one row holds one prompt, its image once, and the completions this device has of it.

A row is [prompt, c1, c2, ...]. Every completion restarts at the position after the prompt and sees the prompt and
itself, so each token's log-probability is exactly what a separate row [prompt, ci] would give, at a fraction of the
work. This file knows shapes and masks; it does not know rewards, losses or where groups come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

PADDING = -1
PROMPT = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion to be scored. `rollout_logprobs` are the sampler's."""

    token_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    advantage: float
    weight: float  # of each of its tokens in the loss; 0 for a dummy
    on_policy: bool = True  # sampled by the very version that now scores it
    in_policy_term: bool = True  # as the next one: of which terms of the loss it is a part
    in_kimikl: bool = True


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model takes it."""

    token_ids: tuple[int, ...]  # image placeholders expanded
    position_ids: Tensor  # [3, P] temporal, height and width positions
    pixel_values: Tensor | None  # [patches, features]
    image_grid_thw: Tensor | None  # [images, 3]


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and some of its completions."""

    prompt: EncodedPrompt
    completions: tuple[Completion, ...]
    temperature: float
    forbidden_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one forward, padded to a common length L. N counts completion tokens over all rows."""

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [3, B, L]
    segments: Tensor  # [B, L]; PADDING, PROMPT, or 1.. for the completions of the row
    is_image: Tensor  # [B, L] 1 at image placeholders
    pixel_values: Tensor | None  # [patches, features] of all rows
    image_grid_thw: Tensor | None  # [images, 3]
    predictors: Tensor  # [N] index into the flattened [B * L] positions whose hidden state predicts the token
    targets: Tensor  # [N]
    temperatures: Tensor  # [N]
    forbidden: Tensor  # [K]
    rollout_logprobs: Tensor  # [N]
    advantages: Tensor  # [N]
    weights: Tensor  # [N]
    on_policy: Tensor  # [N] 1 for tokens of the current version
    in_policy_term: Tensor  # [N] 1 or 0, as of the token's completion
    in_kimikl: Tensor  # [N] 1 or 0, as of the token's completion
    sequences: Tensor  # [N] index of the token's completion
    num_sequences: int

    def to(self, device: torch.device, dtype: torch.dtype) -> RowBatch:
        """Move to `device`; pixels become `dtype`."""
        moved: dict[str, Any] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Tensor):
                moved[spec.name] = value.to(device, dtype if spec.name == "pixel_values" else None)
        return replace(self, **moved)


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [B, 1, L, L]: a token sees earlier tokens of the prompt and of its own completion.

    Padding sees padding, so no row of the softmax is empty.
    """
    length = segments.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == PROMPT)[:, None, :]
    visible = earlier[None] & (same | prompt)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def pack(rows: Sequence[Row], image_token_id: int, pad_token_id: int) -> RowBatch:
    """Lay rows out as tensors.

    Raises:
        ValueError: no rows, or rows that forbid different tokens (they would need different distributions).
    """
    if not rows:
        raise ValueError("a forward needs at least one row")
    if len({row.forbidden_token_ids for row in rows}) > 1:
        raise ValueError("rows of one forward must forbid the same tokens")
    length = max(len(row.prompt.token_ids) + sum(len(c.token_ids) for c in row.completions) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    position_ids = torch.zeros(3, len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), PADDING, dtype=torch.long)
    tokens = _Tokens()
    for index, row in enumerate(rows):
        num_prompt = len(row.prompt.token_ids)
        input_ids[index, :num_prompt] = torch.tensor(row.prompt.token_ids)
        position_ids[:, index, :num_prompt] = row.prompt.position_ids
        segments[index, :num_prompt] = PROMPT
        following = int(row.prompt.position_ids.max()) + 1
        start = num_prompt
        for segment, completion in enumerate(row.completions, start=1):
            stop = start + len(completion.token_ids)
            input_ids[index, start:stop] = torch.tensor(completion.token_ids)
            position_ids[:, index, start:stop] = following + torch.arange(stop - start)
            segments[index, start:stop] = segment
            # The prompt's last token predicts the first of each completion; then each token predicts the next.
            tokens.append(completion, row.temperature, index * length, (num_prompt - 1, *range(start, stop - 1)))
            start = stop
    pixels = [row.prompt.pixel_values for row in rows if row.prompt.pixel_values is not None]
    grids = [row.prompt.image_grid_thw for row in rows if row.prompt.image_grid_thw is not None]
    return RowBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        is_image=(input_ids == image_token_id).long(),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
        forbidden=torch.tensor(rows[0].forbidden_token_ids, dtype=torch.long),
        **tokens.tensors(),
    )


class _Tokens:
    """Collects what is kept per completion token."""

    def __init__(self) -> None:
        self._columns: dict[str, list[float]] = {
            name: []
            for name in (
                "predictors",
                "targets",
                "temperatures",
                "rollout_logprobs",
                "advantages",
                "weights",
                "on_policy",
                "in_policy_term",
                "in_kimikl",
                "sequences",
            )
        }
        self._num_sequences = 0

    def append(self, completion: Completion, temperature: float, offset: int, predictors: Sequence[int]) -> None:
        count = len(completion.token_ids)
        columns = self._columns
        columns["predictors"] += [offset + position for position in predictors]
        columns["targets"] += completion.token_ids
        columns["temperatures"] += [temperature] * count
        columns["rollout_logprobs"] += completion.rollout_logprobs
        columns["advantages"] += [completion.advantage] * count
        columns["weights"] += [completion.weight] * count
        columns["on_policy"] += [float(completion.on_policy)] * count
        columns["in_policy_term"] += [float(completion.in_policy_term)] * count
        columns["in_kimikl"] += [float(completion.in_kimikl)] * count
        columns["sequences"] += [self._num_sequences] * count
        self._num_sequences += 1

    def tensors(self) -> dict[str, Any]:
        integers = {"predictors", "targets", "sequences"}
        made: dict[str, Any] = {
            name: torch.tensor(values, dtype=torch.long if name in integers else torch.float32)
            for name, values in self._columns.items()
        }
        made["num_sequences"] = self._num_sequences
        return made


RopeIndex = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class PositionCache:
    """Positions of a prompt depend only on where its image tokens are and how large the images: few distinct cases."""

    def __init__(self, rope_index: RopeIndex, max_entries: int = 1024) -> None:
        self._rope_index = rope_index
        self._max_entries = max_entries
        self._positions: dict[tuple[bytes, bytes], Tensor] = {}

    def positions(self, token_ids: Sequence[int], image_token_id: int, grid: Tensor | None) -> Tensor:
        """[3, P] positions of one prompt."""
        is_image = torch.tensor([token == image_token_id for token in token_ids], dtype=torch.long)
        key = (is_image.numpy().tobytes(), b"" if grid is None else grid.numpy().tobytes())
        if key not in self._positions:
            if len(self._positions) >= self._max_entries:
                self._positions.clear()
            if grid is None:
                found = torch.arange(len(token_ids)).expand(3, -1)
            else:
                found = self._rope_index(torch.tensor([token_ids]), is_image[None], grid)[:, 0]
            self._positions[key] = found
        return self._positions[key]
