"""What the model wrote, out of a decoded prompt with its response. Linear time, never an exception.

It knows the marks of chat templates and nothing else: no HTTP, no task.
"""

from __future__ import annotations

import re

# A processor writes one of these for each patch of an image where the prompt has a single one. Each token can match in
# one way only, so the loop never goes back.
_IMAGE_PADS = re.compile(
    r"(?:<\|image_pad\|>|<\|video_pad\|>|<image>|<video>|<IMG_CONTEXT>|<\|image\|>|<image_soft_token>)+"
)

_TURN_MARKERS = (
    "<|im_start|>assistant\n",
    "<start_of_turn>model\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|turn>model\n",
    "<|assistant|>\n",
    "<|assistant|>",
    "<｜Assistant｜>",  # noqa: RUF001
    "[/INST]",
)
# Ordinary words, which a model may write as well: they count only where no special token says more.
_WORD_MARKERS = ("### Response:\n", "ASSISTANT: ", "Assistant: ", "\nassistant\n")

_END_MARKERS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<eos>",
    "</s>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001
)


def extract_response(query: str, prompt: str, *, keep_end: bool = False) -> str:
    """The response within `query`, which is prompt and response as decoded with special tokens.

    Takes away the prompt, in which a run of image pads equals one; where that fails (a prompt cut at its front, another
    rendering), everything up to the last assistant marker; where there is none, nothing. Then the end markers, unless
    `keep_end`.
    """
    response = _after_prompt(query, prompt) if prompt else None
    if response is None:
        response = _after_last(query, _TURN_MARKERS)
    if response is None:
        response = _after_last(query, _WORD_MARKERS)
    if response is None:
        response = query
    return response if keep_end else _without_end(response)


def _after_prompt(query: str, prompt: str) -> str | None:
    position = 0
    for place, text in enumerate(_IMAGE_PADS.split(prompt)):
        if place:
            pads = _IMAGE_PADS.match(query, position)
            if pads is None:
                return None
            position = pads.end()
        if not query.startswith(text, position):
            return None
        position += len(text)
    return query[position:]


def _after_last(query: str, markers: tuple[str, ...]) -> str | None:
    end = max((at + len(marker) for marker in markers if (at := query.rfind(marker)) >= 0), default=None)
    return None if end is None else query[end:]


def _without_end(response: str) -> str:
    """Without its end markers and the space among them. Only a position moves: the text is copied once."""
    end = position = len(response)
    while True:
        while position > 0 and response[position - 1].isspace():
            position -= 1
        marker = next((mark for mark in _END_MARKERS if response.endswith(mark, 0, position)), None)
        if marker is None:
            return response[:end]
        position -= len(marker)
        end = position
