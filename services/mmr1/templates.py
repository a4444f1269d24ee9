"""From a problem to the text a model reads, and to the text a warm start teaches it to say.

A run's system prompt, question and answer templates are looked up here by name; a model's own chat template then writes
the conversation and its image placeholders. This file knows nothing of token ids, image sizes or rewards.

A template is a text in which `{problem}` or `{solution}` is replaced, or a callable that takes the Problem. The names
stand in `mmr1.template_registry`, and in docs/templates.md with an example of each; besides them, `module:attribute`
names one of your own.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmr1.chat_template import IMAGE_PLACEHOLDER, ChatTemplate, Message
from mmr1.errors import ConfigurationError
from mmr1.records import Problem
from mmr1.template_registry import TEMPLATES, Template

if TYPE_CHECKING:
    from mmr1.config import RunConfig

SYSTEM_PROMPTS: dict[str, Template] = {name: entry.system_prompt for name, entry in TEMPLATES.items()}
QUESTIONS: dict[str, Template] = {name: entry.question for name, entry in TEMPLATES.items()}
ANSWERS: dict[str, Template] = {name: entry.answer for name, entry in TEMPLATES.items()}


@dataclass(frozen=True, slots=True)
class Templates:
    """A run's three templates, looked up."""

    system_prompt: Template = SYSTEM_PROMPTS["default"]
    question: Template = QUESTIONS["default"]
    answer: Template = ANSWERS["default"]

    @classmethod
    def from_config(cls, config: RunConfig) -> Templates:
        """Look up the three names of a run.

        Raises:
            ConfigurationError: a name is unknown (the nearest one is given) or what it names is no template.
        """
        return cls(
            system_prompt=find_template("system_prompt_template", config.system_prompt_template, SYSTEM_PROMPTS),
            question=find_template("question_template", config.question_template, QUESTIONS, "{problem}"),
            answer=find_template("answer_template", config.answer_template, ANSWERS, "{solution}"),
        )


def render(problem: Problem, templates: Templates, chat_template: ChatTemplate) -> str:
    """The prompt up to the model's turn, with one image placeholder for each of the problem's images, images first.

    Raises:
        ConfigurationError: a template of the run's own or the chat template fails, or the text holds image placeholders
            that are no images.
    """
    messages: list[Message] = []
    system = _fill("system_prompt_template", templates.system_prompt, problem)
    if system:
        messages.append({"role": "system", "content": system})
    content: list[dict[str, str]] = [{"type": "image"} for _ in problem.images]
    content.append({"type": "text", "text": _fill("question_template", templates.question, problem)})
    messages.append({"role": "user", "content": content})
    text = chat_template.render(messages)
    placeholder = chat_template.image_placeholder
    found = text.count(placeholder)
    if found != len(problem.images):
        raise ConfigurationError(
            f"problem {problem.position}: its prompt has {found} {placeholder} for {len(problem.images)} images; "
            "take the placeholder out of the problem's text, or use a vision-language model's chat template"
        )
    return text


def render_answer(problem: Problem, templates: Templates) -> str:
    """What the model should say to this problem, without the token that ends its turn.

    Raises:
        ConfigurationError: a template of the run's own fails.
    """
    return _fill("answer_template", templates.answer, problem)


def find_template(option: str, name: str, registry: dict[str, Template], placeholder: str = "") -> Template:
    """The template of a registered name or of `module:attribute`; a text must hold `placeholder`.

    Raises:
        ConfigurationError: it does not exist or is no template; names `option`, the value and the remedy.
    """
    if ":" in name:
        template = _import(option, name)
        if isinstance(template, str) and placeholder not in template:
            raise ConfigurationError(f"option {option!r}: the text {name} does not contain {placeholder}")
        return template
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=3, cutoff=0.5)
        meant = " or ".join(map(repr, near))
        hint = f"did you mean {meant}?" if near else f"known are {', '.join(registry)}"
        raise ConfigurationError(f"option {option!r}: unknown template {name!r}; {hint} (or give module:attribute)")
    return registry[name]


def _import(option: str, name: str) -> Template:
    module_name, _, attribute = name.partition(":")
    try:
        template = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"option {option!r}: {name!r} cannot be imported: {error}") from None
    if not isinstance(template, str) and not callable(template):
        raise ConfigurationError(f"option {option!r}: {name!r} is neither a text nor a callable of one Problem")
    return template  # type: ignore[no-any-return]  # a callable's signature shows when it is called


def _fill(option: str, template: Template, problem: Problem) -> str:
    if not isinstance(template, str):
        return _called(option, template, problem)
    # One pass, so that a problem's own braces are never replaced; str.format would trip over them.
    values = {"{problem}": problem.problem, "{solution}": _solution_text(problem)}
    return re.sub(r"\{problem\}|\{solution\}", lambda match: values[match.group()], template)


def _called(option: str, template: Callable[[Problem], str], problem: Problem) -> str:
    """What a callable says. It is the user's code: whatever it raises or returns is told by the option's name."""
    name = f"{template.__module__}:{getattr(template, '__qualname__', type(template).__name__)}"
    where = f"option {option!r}: {name} at problem {problem.position}"
    try:
        text: object = template(problem)
    except Exception as error:
        raise ConfigurationError(f"{where} raised {type(error).__name__}: {_one_line(error)}; mend it") from error
    if not isinstance(text, str):
        raise ConfigurationError(f"{where} returned {type(text).__name__}, not a text; return a str")
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _solution_text(problem: Problem) -> str:
    """A text as it is, without answer tags that some datasets already carry; anything else as JSON."""
    if not isinstance(problem.solution, str):
        return json.dumps(problem.solution, ensure_ascii=False)
    tagged = re.fullmatch(r"\s*<answer>(.*)</answer>\s*", problem.solution, flags=re.DOTALL)
    return tagged.group(1).strip() if tagged else problem.solution


__all__ = [
    "ANSWERS",
    "IMAGE_PLACEHOLDER",
    "QUESTIONS",
    "SYSTEM_PROMPTS",
    "Template",
    "Templates",
    "find_template",
    "render",
    "render_answer",
]
