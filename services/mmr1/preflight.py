"""Everything that can be known to be wrong before a process starts: a second here saves the half minute of an engine.

Each check raises ConfigurationError with one line that names the thing and the remedy. That options have the right
names, types and relations is `mmr1.config`'s part and done by now. Imports no engine.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from redis.exceptions import RedisError

from mmr1.chat_template import ChatTemplate
from mmr1.config import RunConfig
from mmr1.dataset import eval_problems, train_problems
from mmr1.deepspeed_file import read_deepspeed_file
from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES, pixel_bounds
from mmr1.local.ports import ports_of, require_free
from mmr1.reward_names import check_names_of_own_server, check_reward_names
from mmr1.templates import Templates
from mmr1.tracker_names import check_trackers
from mmr1_reward_server.client import RewardServerError

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SMALLEST_FREE_BYTES = 512 * 2**20
BYTES_PER_PARAMETER = 12  # a checkpoint holds float32 weights and AdamW's two moments
BYTES_OF_REFERENCE = 4  # and the reference's weights where it moves
REMOTE_SECONDS = 10.0


def check(config: RunConfig) -> None:
    """Run every check, cheapest first. Raises ConfigurationError at the first that fails."""
    folder = check_model(config.model)
    if folder is not None:
        pixel_bounds(config, _model_config(config.model, folder)["model_type"])
    check_space(config, folder)
    Templates.from_config(config)
    check_trackers(config.trackers)
    read_deepspeed_file(config)
    require_free(ports_of(config))
    if config.redis_url is not None:
        check_redis(config.redis_url)
    if config.reward_url is None:
        check_names_of_own_server(config)
    else:
        check_reward_server(config.reward_url)
        try:
            check_reward_names(config)
        except RewardServerError as error:
            raise ConfigurationError(f"reward_url {config.reward_url}: {error}") from None
    train_problems(config)
    eval_problems(config)


def check_model(model: str) -> Path | None:
    """The folder of a local or cached model; None: it is on the hub and will be downloaded."""
    folder = Path(model).expanduser()
    if folder.exists():
        return _check_folder(model, folder)
    parts = Path(model).parts
    if len(parts) != 2 or model.startswith((".", "~", "/")) or Path(parts[0]).is_dir():
        raise ConfigurationError(
            f"model {model!r} does not exist; give a model folder or a hub name like Qwen/Qwen2.5-VL-3B-Instruct"
        )
    cached = sorted((_hub_cache() / f"models--{parts[0]}--{parts[1]}" / "snapshots").glob("*"))
    if cached:
        return _check_folder(model, cached[-1])
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor in the cache {_hub_cache()}; download it, or unset HF_HUB_OFFLINE"
        )
    _check_hub(model)
    return None


def check_space(config: RunConfig, model_folder: Path | None) -> None:
    """Room for the checkpoints that the run keeps, and one more while it is written."""
    parameters = 0
    if model_folder is not None:
        # At least two bytes a parameter in the file: an upper bound of their number.
        parameters = sum(file.stat().st_size for name in WEIGHT_PATTERNS for file in model_folder.glob(name)) // 2
    bytes_each = BYTES_PER_PARAMETER + (BYTES_OF_REFERENCE if config.ref_sync_steps else 0)
    needed = SMALLEST_FREE_BYTES + (config.keep_last + 1) * parameters * bytes_each
    free = shutil.disk_usage(config.run_dir).free
    if free < needed:
        raise ConfigurationError(
            f"run_dir {config.run_dir} has {free / 2**30:.1f} GiB free and the run needs {needed / 2**30:.1f}; "
            "free some, give another --run_dir, or lower --keep_last"
        )


def check_redis(url: str) -> None:
    """An existing Redis answers PING and is new enough for XAUTOCLAIM."""
    shown = url.rpartition("@")[2]
    try:
        with Redis.from_url(url, socket_timeout=REMOTE_SECONDS, socket_connect_timeout=REMOTE_SECONDS) as redis:
            version = str(redis.info("server")["redis_version"])
    except (RedisError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"redis_url {shown}: {_first_line(error)}; start it, or leave redis_url out: `mmr1 up` starts its own"
        ) from None
    if tuple(map(int, version.split(".")[:2])) < (6, 2):
        raise ConfigurationError(f"redis_url {shown} is Redis {version}; 6.2 or newer is needed (XAUTOCLAIM)")


def check_reward_server(url: str) -> None:
    """An existing reward server says it is ready."""
    remedy = "start it, or leave reward_url out and `mmr1 up` starts one"
    try:
        status = httpx.get(f"{url}/readyz", timeout=REMOTE_SECONDS).status_code
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigurationError(f"reward_url {url}: {_first_line(error)}; {remedy}") from None
    if status != httpx.codes.OK:
        raise ConfigurationError(f"reward_url {url}: /readyz answers {status}; {remedy}")


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
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        whole = size == 8 + length + end and end > 0
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ConfigurationError(
            f"model {model!r}: {path.name} ({size} bytes) is cut or damaged; download it again, completely"
        )


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
            timeout=REMOTE_SECONDS,
            follow_redirects=True,
        )
    except httpx.TransportError as error:
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor in the cache {_hub_cache()}, and the hub does not answer "
            f"({_first_line(error)}); give the path of a model folder"
        ) from None
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigurationError(
            f"model {model!r}: the hub refuses it or has none of that name; check it, or set HF_TOKEN"
        )
    if reply.is_error:
        raise ConfigurationError(
            f"model {model!r} is neither a folder nor on the hub ({reply.status_code}); check the name"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
