"""Groups to tensors: a group is one prompt, its images once, and the completions this device has of it.

It is laid out as [prompt, c1, c2, ...]. Every completion restarts at the position after the prompt and sees the prompt
and itself, so each token's log-probability is exactly what a separate row [prompt, ci] would give, at a fraction of the
work. Short groups share a row. Where positions are the model's secret, each completion gets a padded row of its own.
This file knows shapes; it does not know rewards, losses or where groups come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmr1_learner.calls import PADDING, PROMPT, ModelCall, place
from mmr1_learner.image_sizes import ON_HOST, ImageSizes


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
    position_ids: Tensor | None  # [3, P] temporal, height and width; [P]; or None: only the model can count
    images: dict[str, Tensor]  # pixels and their sizes, by the names under which the model takes them
    image_axis: int = 0  # along which the images of several prompts are joined
    token_types: dict[str, Tensor] = field(default_factory=dict)  # [P] each; kept only where the model counts


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and some of its completions."""

    prompt: EncodedPrompt
    completions: tuple[Completion, ...]
    temperature: float
    forbidden_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one forward. N counts completion tokens over all rows, in the order in which the rows were given."""

    calls: tuple[ModelCall, ...]  # one for shared rows; one a group for padded rows
    predictors: Tensor  # [N] index into all calls' flattened positions: whose hidden state predicts the token
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
        """Move to `device`, but for what a call has `on_host`; pixels become `dtype`."""
        moved: dict[str, Any] = {"calls": tuple(call.to(device, dtype) for call in self.calls)}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Tensor):
                moved[spec.name] = value.to(device, non_blocking=value.is_pinned())
        return replace(self, **moved)

    def pinned(self) -> RowBatch:
        """Where a GPU copies it from while the host goes on."""
        held: dict[str, Any] = {"calls": tuple(call.pinned() for call in self.calls)}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Tensor):
                held[spec.name] = value.pin_memory()
        return replace(self, **held)


def pack(
    rows: Sequence[Row],
    image_token_id: int,
    pad_token_id: int,
    max_row_tokens: int = 0,
    sizes: ImageSizes | None = None,
) -> RowBatch:
    """Lay rows out as tensors.

    Groups share a row of the forward only up to the length of the longest group: that takes padding away and makes no
    row longer. `max_row_tokens` allows longer rows. With `sizes`, of the model's encoder, what the model derives from
    its images' sizes is among the tensors, and a forward of shared rows does not stop for it.

    Raises:
        ValueError: no rows, or rows that forbid different tokens (they would need different distributions).
    """
    if not rows:
        raise ValueError("a forward needs at least one row")
    if len({row.forbidden_token_ids for row in rows}) > 1:
        raise ValueError("rows of one forward must forbid the same tokens")
    tokens = _Tokens()
    if any(row.prompt.position_ids is None for row in rows):
        calls, offset = [], 0
        for row in rows:
            calls.append(_padded(row, pad_token_id, tokens, offset))
            offset += calls[-1].input_ids.numel()
    else:
        call = _shared(rows, image_token_id, pad_token_id, max_row_tokens, tokens)
        if sizes is not None and (derived := sizes.arguments(call.input_ids, call.images)):
            call = replace(call, derived=derived, on_host=ON_HOST)
        calls = [call]
    forbidden = torch.tensor(rows[0].forbidden_token_ids, dtype=torch.long)
    return RowBatch(calls=tuple(calls), forbidden=forbidden, **tokens.tensors())


def _shared(
    rows: Sequence[Row], image_token_id: int, pad_token_id: int, max_row_tokens: int, tokens: _Tokens
) -> ModelCall:
    lengths = [len(row.prompt.token_ids) + sum(len(c.token_ids) for c in row.completions) for row in rows]
    bound = max(*lengths, max_row_tokens)
    places = place(lengths, bound)
    shape = (
        max(row for row, _ in places) + 1,
        max(start + size for (_, start), size in zip(places, lengths, strict=True)),
    )
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    owners = torch.full(shape, PADDING, dtype=torch.long)
    segments = torch.full(shape, PADDING, dtype=torch.long)
    first = rows[0].prompt.position_ids
    assert first is not None
    position_ids = torch.zeros(*first.shape[:-1], *shape, dtype=torch.long)
    for owner, (row, (index, start)) in enumerate(zip(rows, places, strict=True)):
        prompt_positions = row.prompt.position_ids
        assert prompt_positions is not None
        end = start + len(row.prompt.token_ids)
        input_ids[index, start:end] = torch.tensor(row.prompt.token_ids)
        position_ids[..., index, start:end] = prompt_positions
        segments[index, start:end] = PROMPT
        owners[index, start : start + lengths[owner]] = owner
        following = int(prompt_positions.max()) + 1
        last_of_prompt = index * shape[1] + end - 1
        for segment, completion in enumerate(row.completions, start=1):
            begin, end = end, end + len(completion.token_ids)
            input_ids[index, begin:end] = torch.tensor(completion.token_ids)
            position_ids[..., index, begin:end] = following + torch.arange(end - begin)
            segments[index, begin:end] = segment
            # The prompt's last token predicts the first of each completion; then each token predicts the next.
            following_tokens = range(index * shape[1] + begin, index * shape[1] + end - 1)
            tokens.append(completion, row.temperature, (last_of_prompt, *following_tokens))
    # The model hands out image features to placeholders in the order of the rows, not of the groups.
    in_order = [rows[owner].prompt for owner in sorted(range(len(rows)), key=places.__getitem__)]
    token_types = {"mm_token_type_ids": (input_ids == image_token_id).long()} if first.ndim == 2 else {}
    call = ModelCall(input_ids, owners, segments, position_ids, _join_images(in_order), token_types)
    return call.with_stretches()


def _padded(row: Row, pad_token_id: int, tokens: _Tokens, offset: int) -> ModelCall:
    """One group, a row for each completion, padded on the right; the prompt's images are repeated for each."""
    count, num_prompt = len(row.completions), len(row.prompt.token_ids)
    length = num_prompt + max(len(completion.token_ids) for completion in row.completions)
    input_ids = torch.full((count, length), pad_token_id, dtype=torch.long)
    segments = torch.full((count, length), PADDING, dtype=torch.long)
    input_ids[:, :num_prompt] = torch.tensor(row.prompt.token_ids)
    segments[:, :num_prompt] = PROMPT
    for index, completion in enumerate(row.completions):
        end = num_prompt + len(completion.token_ids)
        input_ids[index, num_prompt:end] = torch.tensor(completion.token_ids)
        segments[index, num_prompt:end] = 1
        start = offset + index * length
        tokens.append(completion, row.temperature, range(start + num_prompt - 1, start + end - 1))
    # Images first or rows first: either way one repetition a row, along the first axis, is the order of the rows.
    images = {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in row.prompt.images.items()}
    token_types = {
        name: torch.nn.functional.pad(tensor, (0, length - num_prompt)).repeat(count, 1)
        for name, tensor in row.prompt.token_types.items()
    }
    return ModelCall(input_ids, torch.zeros_like(segments), segments, None, images, token_types)


def _join_images(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.images)
    axis = prompts[0].image_axis
    return {name: torch.cat([p.images[name] for p in prompts if name in p.images], dim=axis) for name in names}


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

    def append(self, completion: Completion, temperature: float, predictors: Sequence[int]) -> None:
        count = len(completion.token_ids)
        columns = self._columns
        columns["predictors"] += predictors
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
    """Positions of a prompt depend only on where its image tokens are and how large the images: few distinct cases.

    Threads may share one: two that miss make the same.
    """

    def __init__(self, rope_index: RopeIndex, max_entries: int = 1024) -> None:
        self._rope_index = rope_index
        self._max_entries = max_entries
        self._positions: dict[tuple[bytes, bytes], Tensor] = {}

    def positions(self, token_ids: Sequence[int], image_token_id: int, grid: Tensor | None) -> Tensor:
        """[3, P] positions of one prompt."""
        is_image = torch.tensor([token == image_token_id for token in token_ids], dtype=torch.long)
        key = (is_image.numpy().tobytes(), b"" if grid is None else grid.numpy().tobytes())
        if (known := self._positions.get(key)) is not None:
            return known
        if grid is None:
            found = torch.arange(len(token_ids)).expand(3, -1)
        else:
            found = self._rope_index(torch.tensor([token_ids]), is_image[None], grid)[:, 0]
        if len(self._positions) >= self._max_entries:
            self._positions.clear()
        self._positions[key] = found
        return found
