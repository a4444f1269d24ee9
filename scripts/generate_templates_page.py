"""Writes docs/templates.md from the registry, so that page and program cannot differ. `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from mmr1.template_registry import TEMPLATES, Entry
from mmr1.templates_cli import example

PAGE = Path(__file__).resolve().parent.parent / "docs" / "templates.md"
INTRODUCTION = """\
# Templates

<!-- Generated from services/mmr1/template_registry.py by scripts/generate_templates_page.py; do not edit. -->

`system_prompt_template`, `question_template` and `answer_template` each take one of these names, or `module:attribute`
for one of your own: a text that holds `{problem}` or `{solution}`, or a function that takes a `mmr1.records.Problem`
and gives a text. They need not be the same name. The question and the system prompt make what the model reads, in its
own chat template; the answer is what [`mmr1 sft`](sft.md) trains it to say. `mmr1 templates NAME` prints an example.

The examples are in ChatML, as the Qwen-VL families write it, with one placeholder for the image; the answer ends each.
Tasks are those of the [reward server](rewards.md) that read answers of this form.

| name | for | tasks |
|---|---|---|
"""


def text() -> str:
    """The whole page."""
    rows = [f"| [`{n}`](#{n}) | {e.purpose} | {_code(e.tasks)} |" for n, e in TEMPLATES.items()]
    return INTRODUCTION + "\n".join([*rows, *(_section(name, entry) for name, entry in TEMPLATES.items())]) + "\n"


def _section(name: str, entry: Entry) -> str:
    problem, prompt, answer = example(name)
    head = f"\n## {name}\n\n{entry.purpose} Words from: {entry.source}."
    return f"{head} The problem {problem.problem!r} becomes\n\n```\n{prompt}{answer}\n```"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        PAGE.write_text(text(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text():
        return 0
    print(f"{PAGE.name} is not what the registry says; run python scripts/{Path(__file__).name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
