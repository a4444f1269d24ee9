"""`mmr1 templates [NAME ...]`: the registered templates, each with what a problem becomes under it.

It prints; what there is stands in mmr1.template_registry, and docs/templates.md shows the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mmr1.chat_template import ChatTemplate
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.records import Problem
from mmr1.template_registry import TEMPLATES, Entry
from mmr1.templates import Templates, render, render_answer

# ChatML, which the Qwen-VL families write.
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
<|im_start|>assistant{{ '\n' }}"""


def example(name: str) -> tuple[Problem, str, str]:
    """A problem that suits the template, the prompt that it becomes in ChatML, and the answer to it."""
    entry = TEMPLATES[name]
    text, solution = _ROWS.get(name, ("How many apples are there?", 3))
    problem = Problem(0, text, solution, ("apples.png",), entry.tasks[0])
    templates = Templates(entry.system_prompt, entry.question, entry.answer)
    return problem, render(problem, templates, ChatTemplate(CHATML, name="ChatML")), render_answer(problem, templates)


_BOXES = "<|box_start|>(100,120),(260,300)<|box_end|>"
_ROWS: dict[str, tuple[str, object]] = {
    "grounding": ("Find the red apple.", [100, 120, 260, 300]),
    "detection": ("Find all apples.", [{"bbox_2d": [100, 120, 260, 300], "label": "apple"}]),
    "pr1_grounding": ("red apple", "[100, 120, 260, 300]"),
    "pr1_counting": ("apple", f"<|object_ref_start|>apple<|object_ref_end|>{_BOXES}"),
    "pr1_detection": ("Which objects are there?", [{"bbox_2d": [100, 120, 260, 300], "label": "apple"}]),
    "pr1_ocr": ("Read the label.", "FRESH APPLES"),
}


def main(argv: Sequence[str]) -> int:
    """Print all of them as a table, or those that are named with their example.

    Raises:
        ConfigurationError: there is no template of that name.
    """
    parser = CommandParser(prog="mmr1 templates", description="List the prompt templates that come with MMR1.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="show these, each with an example")
    names = parser.parse_args(argv).names
    for name in names:
        if name not in TEMPLATES:
            near = difflib.get_close_matches(name, TEMPLATES, n=3, cutoff=0.5) or list(TEMPLATES)
            raise ConfigurationError(f"mmr1 templates: unknown template {name!r}; did you mean {' or '.join(near)}?")
    console = Console()
    if not names:
        console.print(_table())
    for name in names:
        _show(console, name, TEMPLATES[name])
    return 0


def _table() -> Table:
    table = Table(show_lines=True)
    for column in ("name", "for", "rewards that read it"):
        table.add_column(column, overflow="fold")
    for name, entry in TEMPLATES.items():
        table.add_row(name, entry.purpose, ", ".join(entry.tasks))
    return table


def _show(console: Console, name: str, entry: Entry) -> None:
    problem, prompt, answer = example(name)
    console.print(f"[bold]{name}[/]  {entry.purpose}", soft_wrap=True)
    console.print(f"source: {entry.source}; read by {', '.join(entry.tasks)}", style="dim", soft_wrap=True)
    console.print(f"{problem.problem!r} becomes", style="dim")
    console.print(prompt, markup=False, highlight=False, soft_wrap=True, end="")
    console.print(answer, style="green", markup=False, highlight=False, soft_wrap=True)
    console.print()
