"""A model's folder, before anything loads it: is it whole, does it see images, and does it have what the run adapts?

It reads small files and the headers of safetensors, which name every tensor. It knows no engine and decides nothing
about how a model is trained.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import httpx

from mmr1.adapter_limits import check_adapter_family
from mmr1.chat_template import ChatTemplate
from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES, pixel_bounds, require_known_layout
from mmr1.trained_layers import check_vision_tower, layers_to_adapt

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
HUB_SECONDS = 10.0


def check_model(model: str) -> Path | None:
    """The folder of a local or cached model; None: it is on the hub and will be downloaded."""
    folder = local_folder(model)
    if folder is not None:
        return _check_folder(model, folder)
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor in the cache {_hub_cache()}; download it, or unset HF_HUB_OFFLINE"
        )
    _check_hub(model)
    return None


def local_folder(model: str) -> Path | None:
    """The folder that a model's name stands for, whatever is in it; None: a hub name that is not in the cache.

    Raises:
        ConfigurationError: it is no folder, and no hub name either.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        return folder
    parts = Path(model).parts
    if len(parts) != 2 or model.startswith((".", "~", "/")) or Path(parts[0]).is_dir():
        raise ConfigurationError(
            f"model {model!r} does not exist; give a model folder or a hub name like Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return _cached_snapshot(_hub_cache() / f"models--{parts[0]}--{parts[1]}")


def count_parameters(model: str, folder: Path) -> int | None:
    """Of the safetensors in the folder, by their headers, or by the index where some are missing; None: neither says.

    Raises:
        ConfigurationError: one of them is damaged.
    """
    found = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            document = json.loads(index.read_text())
            named = set(document["weight_map"].values())
            total = document.get("metadata", {}).get("total_parameters")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigurationError(f"model {model!r}: {index.name} cannot be read; download it again") from None
        if not named <= found:
            return total if isinstance(total, int) and total > 0 else None
    for name in sorted(found):
        _check_weights(model, folder / name)
    return sum(math.prod(shape) for shape in _shapes(folder).values()) or None


def _cached_snapshot(folder: Path) -> Path | None:
    """The one that loads when nobody names a revision: main's, or what there is where main is not known."""
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        main = folder
    if main.parent.name == "snapshots" and main.is_dir():
        return main
    return max((folder / "snapshots").glob("*"), default=None)


def check_folder_for(config: RunConfig, folder: Path) -> None:
    """Whether this model can be trained as the run says: bounds of pixels, ZeRO's stage, what is frozen or adapted.

    A folder without safetensors does not name its layers; then they are looked for when it is loaded.

    Raises:
        ConfigurationError: it cannot.
    """
    model_type = _model_config(config.model, folder)["model_type"]
    pixel_bounds(config, model_type)
    check_adapter_family(config, model_type)
    require_known_layout(config, model_type)
    shapes = _shapes(folder)
    if not shapes:
        return
    if config.freeze_vision_tower:
        check_vision_tower(shapes)
    if config.lora_rank:
        # Tables of embeddings have two dimensions too.
        linear = [name.removesuffix(".weight") for name, shape in shapes.items() if _is_matrix(name, shape)]
        layers_to_adapt([name for name in linear if "embed" not in name.rpartition(".")[2]], config)


def _check_folder(model: str, folder: Path) -> Path:
    described = _model_config(model, folder)
    model_type = described["model_type"]
    if model_type not in FAMILIES and "vision_config" not in described:
        raise ConfigurationError(
            f"model {model!r} is of type {model_type!r}, which sees no images; known are {', '.join(FAMILIES)}"
        )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ConfigurationError(
            f"model {model!r} has no weights ({' or '.join(WEIGHT_PATTERNS)}); download them completely"
        )
    for weights in folder.glob("*.safetensors"):
        _check_weights(model, weights)
    for what, names in (("tokenizer", TOKENIZER_FILES), ("image processor", PROCESSOR_FILES)):
        if not any((folder / name).is_file() for name in names):
            raise ConfigurationError(f"model {model!r} has no {what} ({' or '.join(names)}); download it completely")
    ChatTemplate.load(folder)
    return folder


def _model_config(model: str, folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / "config.json").read_text())
        described["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"model {model!r} has no readable config.json with a model_type; give a Hugging Face model folder"
        ) from None
    return described


def _check_weights(model: str, path: Path) -> None:
    """A download that was cut is found by its length: the header says where the last tensor ends."""
    size = path.stat().st_size
    try:
        length, header = _header(path)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        whole = size == 8 + length + end and end > 0
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ConfigurationError(
            f"model {model!r}: {path.name} ({size} bytes) is cut or damaged; download it again, completely"
        )


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Its length in bytes, and what it says of each tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
    header.pop("__metadata__", None)
    return length, header


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Of every tensor in the folder's safetensors, which `_check_weights` has found whole."""
    headers = [_header(path)[1] for path in sorted(folder.glob("*.safetensors"))]
    return {name: entry["shape"] for header in headers for name, entry in header.items()}


def _is_matrix(name: str, shape: list[int]) -> bool:
    return name.endswith(".weight") and len(shape) == 2


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _check_hub(model: str) -> None:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    try:
        reply = httpx.head(
            f"{endpoint}/{model}/resolve/main/config.json",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=HUB_SECONDS,
            follow_redirects=True,
        )
    except httpx.TransportError as error:
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor in the cache {_hub_cache()}, and the hub does not answer "
            f"({' '.join(str(error).split())}); give the path of a model folder"
        ) from None
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigurationError(
            f"model {model!r}: the hub refuses it or has none of that name; check it, or set HF_TOKEN"
        )
    if reply.is_error:
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor on the hub ({reply.status_code}); check the name"
        )


__all__ = [
    "PROCESSOR_FILES",
    "TOKENIZER_FILES",
    "WEIGHT_PATTERNS",
    "check_folder_for",
    "check_model",
    "count_parameters",
    "local_folder",
]
