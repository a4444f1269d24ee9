"""Models of real shapes with random weights, for what is measured on GPUs: speed and memory, nothing that is learned.

The processor is the small model's, and its tokenizer with a word for each id that it lacks: what random weights sample
is text, as long as it is in tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

SMALL_MODEL = Path(__file__).resolve().parent.parent / "examples" / "tiny_vlm"
SIDE = 896  # pixels of the largest image
_QWEN2_TEXT = {
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
}


class Shape(NamedTuple):
    """A family's classes, and what its config.json says of text and tower."""

    config: Any
    model: Any
    text: dict[str, Any]
    vision: dict[str, Any]


SHAPES = {
    # https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/config.json
    "qwen2_5_vl_3b": Shape(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        {
            **_QWEN2_TEXT,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "max_position_embeddings": 128000,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
        },
    ),
    # https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/config.json
    "qwen2_vl_2b": Shape(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        {
            **_QWEN2_TEXT,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "max_position_embeddings": 32768,
        },
        {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
    ),
}
DEFAULT_SHAPE = "qwen2_5_vl_3b"


def make_shape(folder: Path, name: str = DEFAULT_SHAPE) -> None:
    """Write a model folder that transformers and vLLM load, in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(SMALL_MODEL)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
    shape = SHAPES[name]
    config = shape.config(
        text_config=shape.text, vision_config=shape.vision, tie_word_embeddings=True, dtype="bfloat16", **ids
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = shape.model(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    del model
    processor = AutoProcessor.from_pretrained(SMALL_MODEL, max_pixels=SIDE * SIDE)
    if name == DEFAULT_SHAPE:
        processor.save_pretrained(folder)
    else:  # each family's processor has a class of its own, which is found by the model's type
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
    add_words(folder / "tokenizer.json", shape.text["vocab_size"])


def add_words(file: Path, vocab_size: int) -> None:
    described = json.loads(file.read_text())
    known = {*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])}
    words = {f"\u0120w{index}": index for index in range(vocab_size) if index not in known}
    described["model"]["vocab"] |= words  # no merge leads to them: a text is still cut as before
    file.write_text(json.dumps(described))
