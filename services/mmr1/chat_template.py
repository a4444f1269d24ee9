"""A model's own chat template, rendered as transformers renders it, without transformers.

Reads the template and the special tokens from the model's folder, or from the local Hugging Face cache for a hub name.
The template is foreign code: it runs in Jinja's immutable sandbox. This file knows nothing of problems or tokens.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmr1.errors import ConfigurationError
from mmr1.families import FAMILIES

IMAGE_PLACEHOLDER = "<|image_pad|>"  # Qwen2-VL, Qwen2.5-VL and Qwen3-VL alike; others name theirs in their folder

Message = dict[str, Any]


class ChatTemplate:
    """Writes a conversation as one model expects it.

    `source` is Jinja text, `special_tokens` the variables (`eos_token` ...) that it may use. `image_placeholder` is
    what it writes for an image, or a part of that.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str] | None = None,
        name: str = "",
        image_placeholder: str = IMAGE_PLACEHOLDER,
    ) -> None:
        self.name = name
        self.image_placeholder = image_placeholder
        self.special_tokens = special_tokens or {}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigurationError(f"chat template of {name}: {error}; repair the model's folder") from None

    @classmethod
    def load(cls, model: str | Path) -> ChatTemplate:
        """The template of a model folder or of a hub name that is in the local cache.

        Raises:
            ConfigurationError: there is no such folder, or it holds no (valid) chat template.
        """
        folder = model_folder(model)
        tokenizer = _read_json(folder / "tokenizer_config.json")
        source = _template_text(folder, tokenizer)
        if source is None:
            raise ConfigurationError(
                f"model {model}: no chat template in {folder}; an instruction-tuned model has chat_template.jinja or "
                "a chat_template in tokenizer_config.json"
            )
        return cls(source, _special_tokens(tokenizer), str(model), _image_placeholder(folder, tokenizer))

    def render(self, messages: list[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; a message's content is a text or a list of {"type": "image"} and {"type": "text"}.

        Raises:
            ConfigurationError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self.special_tokens
            )
        except jinja2.TemplateError as error:
            raise ConfigurationError(f"chat template of {self.name}: {error}; change system_prompt_template") from None


def model_folder(model: str | Path) -> Path:
    """The folder of a model given as a path, or as a hub name whose snapshot is in the Hugging Face cache.

    Raises:
        ConfigurationError: neither exists.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cache / f"models--{str(model).replace('/', '--')}"
    revision = repository / "refs" / "main"
    snapshot = repository / "snapshots" / (revision.read_text().strip() if revision.is_file() else "none")
    if snapshot.is_dir():
        return snapshot
    raise ConfigurationError(
        f"model {model} is neither a folder nor in the Hugging Face cache {cache}; give a folder, or fetch it with "
        f"`hf download {model}`"
    )


def _template_text(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """Where transformers looks, in its order: the .jinja file, then the two JSON files."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for document in (_read_json(folder / "chat_template.json"), tokenizer):
        template = document.get("chat_template")
        if isinstance(template, list):  # several named ones
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template is not None:
            return str(template)
    return None


def _image_placeholder(folder: Path, tokenizer: dict[str, Any]) -> str:
    family = FAMILIES.get(_read_json(folder / "config.json").get("model_type", ""))
    if family is not None:
        return family.image_placeholder
    return _special_tokens(tokenizer).get("image_token", IMAGE_PLACEHOLDER)


def _special_tokens(tokenizer: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for key, value in tokenizer.items():
        if key.endswith("_token") and value is not None and not isinstance(value, bool):
            tokens[key] = str(value["content"] if isinstance(value, dict) else value)
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); repair the model's folder") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} must hold a JSON object; repair the model's folder")
    return document


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up; `strftime_now` is left out, since a prompt must not depend on the day."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


class _Generation(jinja2.ext.Extension):
    """Accepts `{% generation %}` blocks, which mark the assistant's tokens, and renders their content."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


__all__ = ["IMAGE_PLACEHOLDER", "ChatTemplate", "Message", "model_folder"]
