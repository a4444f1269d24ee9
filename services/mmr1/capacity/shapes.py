"""A model's shape from its config.json: parameters, multiplications and cache a token, of each family that is known.

It counts; it knows no GPU and no run. Norms, biases and tables of positions are left out: less than a hundredth. Where
weights lie beside the config.json, their own number is taken for the parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES
from mmr1.model_folder import count_parameters

# Published folders leave out what is transformers' default, by the `model_type` of the part.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "idefics3_vision": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
    },
}
_DEFAULTS["smolvlm_vision"] = _DEFAULTS["idefics3_vision"]


@dataclass(frozen=True, slots=True)
class Stack:
    """A tower's or a language model's layers."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool  # three matrices in the feed-forward part, not two
    num_full_layers: int  # whose attention sees everything; the others' sees `window` tokens
    window: int = 0

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by the names that LoRA's options use."""
        own, shared = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        gate = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {
            "q_proj": (self.hidden, own),
            "k_proj": (self.hidden, shared),
            "v_proj": (self.hidden, shared),
            "o_proj": (own, self.hidden),
            **gate,
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def num_parameters(self) -> int:
        return self.num_layers * self.layer_parameters

    def attention_flops(self, num_full: float, num_windowed: float) -> float:
        """Forward, from the pairs of query and key that layers of either kind look at."""
        pairs = self.num_full_layers * num_full + (self.num_layers - self.num_full_layers) * num_windowed
        return 4 * self.num_heads * self.head_dim * pairs


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is made of. `num_parameters` is of the weights where they lie there, else counted."""

    model_type: str
    text: Stack
    vision: Stack
    vocab_size: int
    patch_size: int
    merge: int  # a token of the prompt is merge x merge patches
    tile: int | None  # side of what the tower sees, in pixels; None: the whole image at its own size
    patch_parameters: int  # of what makes a patch a vector
    projector_parameters: int  # of what joins the tower to the text, used once for each token
    num_parameters: int
    counted: bool  # from the shapes: no weights there

    @property
    def vision_parameters(self) -> int:
        return self.vision.num_parameters + self.patch_parameters + self.projector_parameters

    @property
    def decoder_parameters(self) -> int:
        """What a decoded token reads of the weights: the text's layers and the head."""
        return self.text.num_parameters + self.vocab_size * self.text.hidden


class _Part:
    """One mapping of a config.json, which names what it lacks."""

    def __init__(self, path: Path, name: str, values: Mapping[str, Any]) -> None:
        self._path, self._name = path, name
        self._values = {**_DEFAULTS.get(str(values.get("model_type")), {}), **values}

    def number(self, *names: str, default: int | None = None) -> int:
        value = next((self._values[name] for name in names if self._values.get(name) is not None), default)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            what = "lacks" if value is None else f"has {value!r} for"
            raise ConfigurationError(
                f"{self._path} {what} {self._name}{names[0]}, a positive number; give the config.json of the published "
                "model, or write it there"
            )
        return value

    def get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value


def read_shape(model: str, folder: Path) -> Shape:
    """The shape of the model in a folder.

    Raises:
        ConfigurationError: its family is not known, or its config.json cannot be read or lacks what is needed.
    """
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        model_type = described["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"model {model!r} has no readable config.json with a model_type; give a Hugging Face model folder"
        ) from None
    if model_type not in FAMILIES:
        raise ConfigurationError(
            f"model {model!r} is a {model_type}, whose shape is not known here; known are {', '.join(FAMILIES)}"
        )
    for name in ("text_config", "vision_config"):
        if not isinstance(described.get(name, {}), dict):
            raise ConfigurationError(f"{path}: {name} is no mapping; give the config.json of the published model")
    nested = "text_config" in described
    text = _Part(path, "text_config." if nested else "", described["text_config"] if nested else described)
    tower = _Part(path, "vision_config.", described.get("vision_config", {}))
    whole = _Part(path, "", described)
    return _shape(model, folder, whole, text, tower)


def _shape(model: str, folder: Path, whole: _Part, text: _Part, tower: _Part) -> Shape:
    model_type = str(whole.get("model_type", ""))
    decoder, vision = _decoder(text), _tower(model_type, tower)
    vocab_size = text.number("vocab_size")
    tied = bool(whole.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    qwen = model_type.startswith("qwen")
    merge = _merge(model_type, whole, tower)
    patch_size = tower.number("patch_size")
    frames = tower.number("temporal_patch_size", default=2) if qwen else 1
    patch_parameters = 3 * frames * patch_size**2 * vision.hidden
    projector = _projector(model_type, vision.hidden * merge**2, decoder.hidden, tower)
    counted = decoder.num_parameters + vision.num_parameters + patch_parameters + projector
    counted += (1 if tied else 2) * vocab_size * decoder.hidden
    stored = count_parameters(model, folder)
    tile = None if qwen else tower.number("image_size")
    return Shape(
        model_type,
        decoder,
        vision,
        vocab_size,
        patch_size,
        merge,
        tile,
        patch_parameters,
        projector,
        stored or counted,
        not stored,
    )


def _decoder(part: _Part) -> Stack:
    layers, hidden, heads = (part.number(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    return Stack(
        num_layers=layers,
        hidden=hidden,
        intermediate=part.number("intermediate_size"),
        num_heads=heads,
        num_kv_heads=part.number("num_key_value_heads", default=heads),
        head_dim=part.number("head_dim", default=hidden // heads),
        gated=True,
        num_full_layers=layers,
    )


def _tower(model_type: str, part: _Part) -> Stack:
    layers = part.number("depth", "num_hidden_layers")
    hidden = part.number("embed_dim") if model_type == "qwen2_vl" else part.number("hidden_size")
    heads = part.number("num_heads", "num_attention_heads")
    ratio = part.get("mlp_ratio", 4)
    windowed = model_type == "qwen2_5_vl"
    full = part.get("fullatt_block_indexes", []) if windowed else range(layers)
    window = (part.number("window_size") // part.number("patch_size")) ** 2 if windowed else 0
    return Stack(
        num_layers=layers,
        hidden=hidden,
        intermediate=int(ratio * hidden) if model_type == "qwen2_vl" else part.number("intermediate_size"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        gated=windowed,
        num_full_layers=len(full),
        window=window,
    )


def _merge(model_type: str, whole: _Part, tower: _Part) -> int:
    if model_type in ("idefics3", "smolvlm"):
        return whole.number("scale_factor", default=2)
    if model_type == "internvl":
        return round(1 / float(whole.get("downsample_ratio", 0.5)))
    return 1 if model_type == "llava" else tower.number("spatial_merge_size", default=2)


def _projector(model_type: str, joined: int, text_hidden: int, tower: _Part) -> int:
    """Parameters of the layers between tower and text; `joined` numbers of the tower become one token."""
    if model_type in ("idefics3", "smolvlm"):
        return joined * text_hidden
    if model_type in ("llava", "internvl"):
        return joined * text_hidden + text_hidden**2
    # Qwen3-VL has one more for each layer of the tower that is shown to the text by itself.
    num = 1 + (len(tower.get("deepstack_visual_indexes", [])) if model_type == "qwen3_vl" else 0)
    return num * (joined**2 + joined * text_hidden)


def patches_of(shape: Shape, size: tuple[int, int] | None, num_tiles: int) -> tuple[int, int]:
    """Patches of one attention of the tower for one image, and how often it is called: (patches, times).

    `size` is of the image as the model sees it; a family that cuts images into tiles sees `num_tiles` of them.
    """
    if shape.tile is None:
        assert size is not None
        return math.prod(side // shape.patch_size for side in size), 1
    return (shape.tile // shape.patch_size) ** 2, num_tiles
