"""Writes docs/configuration.md from RunConfig, so that the page and the program cannot differ. `--check` only compares.

Knows the shape of the options' classes, and no option by name.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mmr1.config.options import RunConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Generated from services/mmr1/config/options.py by scripts/generate_configuration_page.py; do not edit. -->

One flat set of options governs a run. `mmr1 up CONFIG` reads them, in this order of precedence, from

1. the command line: `--num_steps 20`, `--num-steps 20` or `--num_steps=20`;
2. the environment: `MMR1_NUM_STEPS=20`;
3. the YAML file CONFIG: `num_steps: 20`;
4. the defaults below.

A list is written alike in all of them: one value, or several with blanks or commas between them (`--kl k1 k3`,
`--kl k1,k3`, `MMR1_KL=k1,k3`, `kl: k1, k3`; on the command line as several words, in YAML as a list too). An empty text
is the empty list (`--kl ""`, `MMR1_KL=`), and so is YAML's `kl:` with nothing behind it. The texts of `stop` may hold
blanks and commas, so one text is always one of them: several are several words or a YAML list, and the environment can
give one. A mapping is one in YAML, and its JSON text everywhere else (`--task_weights '{"counting": 2, "ocr": 1}'`).

An unknown option, a value of the wrong type or out of bounds, and options that contradict each other are refused with
one line, before anything starts. The resolved configuration is written to `config.yaml` in the run's folder, and every
process of the run reads it from there. What is only the chosen objective's own default is a comment in it: with another
`--objective` the file gives that one's. Relative paths are relative to the working directory.
"""


def text() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for group in reversed([base for base in RunConfig.__bases__ if base.__name__.endswith("Options")]):
        parts.append(f"\n## {group.__name__.removesuffix('Options')}\n")
        parts.append("| option | values | default | meaning |\n|---|---|---|---|")
        for name in group.__annotations__:
            parts.append(_row(name, RunConfig.model_fields[name]))
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
    cells = [f"`{name}`", _values(field), default, field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(str(item) for item in value)}]"
    return str(value)


def _values(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (bound := getattr(constraint, attribute, None)) is not None:
                bounds.append(f"{sign} {bound}")
        if pattern := getattr(constraint, "pattern", None):
            bounds.append(f"matches `{pattern}`")
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}[annotation]


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        PAGE.write_text(text(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text():
        return 0
    print(f"{PAGE.name} is not what RunConfig says; run python scripts/{Path(__file__).name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
