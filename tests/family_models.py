"""A small model of each family with random weights: configuration by hand, our own tokenizer, a real processor.

`build` writes a folder that transformers and vLLM load. Nothing here knows of the learner or the rollout server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmr1_learner import tiny_model

TILE = 56  # pixels; 4 x 4 patches of 14, merged to 4 tokens
_QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
PLACEHOLDERS = {
    "qwen2_vl": _QWEN_PLACEHOLDER,
    "qwen2_5_vl": _QWEN_PLACEHOLDER,
    "qwen3_vl": _QWEN_PLACEHOLDER,
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "llava": "<image>",
    "internvl": "<IMG_CONTEXT>",
}
# Heads of 32: the smallest that vLLM's attention on a CPU takes.
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 14,
}


def build(family: str, folder: Path, seed: int = 0) -> None:
    """Write a model folder of `family`."""
    tokenizer = tiny_model.build_tokenizer([tiny_model.QUESTION])
    torch.manual_seed(seed)
    _BUILDERS[family](tokenizer, folder)


def prompt_text(family: str, num_images: int, question: str = "How many digits are there?") -> str:
    """A conversation with its image placeholders, up to the model's turn."""
    return f"<|im_start|>user\n{PLACEHOLDERS[family] * num_images}{question}<|im_end|>\n<|im_start|>assistant\n"


def _save(folder: Path, model: Any, processor: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """All parameters far enough from zero that a fault in any of them would be seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _add(tokenizer: PreTrainedTokenizerFast, **named: str) -> None:
    """Special tokens under the names by which the family's processor asks for them."""
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in named.values()])
    tokenizer._set_model_specific_special_tokens(named)


def _text(tokenizer: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {**_TEXT, "vocab_size": len(tokenizer), **tokens, **options}


def _qwen(tokenizer: PreTrainedTokenizerFast, folder: Path, make: Any, patch_size: int, **options: Any) -> None:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    tokens: dict[str, Any] = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4], **options}
    model = make(_text(tokenizer, rope_parameters=rope), {**tokens, "tie_word_embeddings": True, "dtype": "float32"})
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=224 * 224, patch_size=patch_size)
    _save(folder, model, processor, tokenizer)


def _qwen2_vl(text: dict[str, Any], tokens: dict[str, Any]) -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))


def _qwen3_vl(text: dict[str, Any], tokens: dict[str, Any]) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**text, "head_dim": 32}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens))


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    _save(folder, tiny_model.build_model(tokenizer, 0), tiny_model.build_image_processor(), tokenizer)


def _idefics(tokenizer: PreTrainedTokenizerFast, folder: Path, smol: bool) -> None:
    _add(
        tokenizer,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in places])
    config = (SmolVLMConfig if smol else Idefics3Config)(
        text_config={**_text(tokenizer), "model_type": "llama"},
        vision_config=_VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        dtype="float32",
    )
    sizes = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    if smol:
        model: Any = SmolVLMForConditionalGeneration(config)
        video = SmolVLMVideoProcessor(size={"longest_edge": TILE}, max_image_size={"longest_edge": TILE})
        processor: Any = SmolVLMProcessor(SmolVLMImageProcessor(**sizes), tokenizer, video, image_seq_len=4)
    else:
        model = Idefics3ForConditionalGeneration(config)
        processor = Idefics3Processor(Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4)
    _save(folder, model, processor, tokenizer)


def _llava(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    _add(tokenizer, image_token="<image>")
    config = LlavaConfig(
        text_config={**_text(tokenizer), "model_type": "llama"},
        vision_config=CLIPVisionConfig(**_VISION, projection_dim=32).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=True,
        dtype="float32",
    )
    images = CLIPImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})
    processor = LlavaProcessor(images, tokenizer, 14, "default", num_additional_image_tokens=1)
    _save(folder, LlavaForConditionalGeneration(config), processor, tokenizer)
    # Published folders have one level more here than transformers now writes, and vLLM wants it.
    weights = load_file(folder / "model.safetensors")
    flat = {name.replace("vision_tower.", "vision_tower.vision_model."): weights[name] for name in weights}
    save_file(flat, folder / "model.safetensors", metadata={"format": "pt"})


def _internvl(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    _add(
        tokenizer,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        text_config={**_text(tokenizer), "model_type": "qwen2"},
        vision_config=_VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=True,
        dtype="float32",
    )
    images = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = InternVLProcessor(images, tokenizer, InternVLVideoProcessor(), image_seq_length=4)
    _save(folder, InternVLForConditionalGeneration(config), processor, tokenizer)


_BUILDERS: dict[str, Any] = {
    "qwen2_vl": lambda tokenizer, folder: _qwen(tokenizer, folder, _qwen2_vl, 14),
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": lambda tokenizer, folder: _qwen(tokenizer, folder, _qwen3_vl, 16, mrope_interleaved=True),
    "idefics3": lambda tokenizer, folder: _idefics(tokenizer, folder, smol=False),
    "smolvlm": lambda tokenizer, folder: _idefics(tokenizer, folder, smol=True),
    "llava": _llava,
    "internvl": _internvl,
}
