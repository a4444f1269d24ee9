"""Writes docs/rewards.md from the reward server's tasks, so that the page and the server cannot differ.

`--check` only compares. Knows the shape of what GET /v1/tasks tells, and no task by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmr1_reward_server.api import TaskInfo
from mmr1_reward_server.rewards import builtin_tasks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rewards.md"
INTRODUCTION = """\
# Rewards

<!-- Generated from reward_server/mmr1_reward_server/rewards/ by scripts/generate_rewards_page.py; do not edit. -->

The tasks that come with the [reward server](../reward_server/README.md). `GET /v1/tasks` tells the same of a running
server, with complete JSON schemas. The reward of a response with nothing to score (`invalid_output`) is the task's
floor, which is never above the worst valid answer's. An unknown parameter is an error (`verifier_error`, no reward).
The examples are what the server answers; tests run them.
"""
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
    "pattern": "matches `{}`",
}
_NAMES = {"string": "text", "boolean": "true or false", "null": "null", "object": "object"}
Schema = dict[str, Any]


def text() -> str:
    """The whole page."""
    tasks = sorted((task.info() for task in builtin_tasks()), key=lambda task: task.name)
    contents = f"Tasks: {', '.join(f'[{task.name}](#{task.name})' for task in tasks)}."
    return "\n".join([INTRODUCTION, contents, *map(_section, tasks)]) + "\n"


def _section(task: TaskInfo) -> str:
    parts = [
        f"\n## {task.name}\n",
        f"{_prose(task.summary)}\n",
        f"- **Formula.** {_prose(task.formula)}",
        f"- **Floor.** {_value(task.floor)}",
        f"- **Solution.** {_type(task.solution_schema, task.solution_schema.get('$defs', {}))}\n",
        *_params(task.params_schema),
        "\n```json",
        _item(task),
        _json(task.example.result.model_dump(mode="json")),
        "```",
    ]
    return "\n".join(parts)


def _params(schema: Schema) -> list[str]:
    rows = [
        _row(name, field, schema.get("$defs", {}), required=name in schema.get("required", ()))
        for name, field in schema.get("properties", {}).items()
    ]
    return ["| parameter | values | default | meaning |\n|---|---|---|---|", *rows] if rows else ["No parameters."]


def _row(name: str, field: Schema, definitions: Schema, *, required: bool) -> str:
    default = "required" if required else f"`{_value(field.get('default'))}`"
    cells = [f"`{name}`", _type(field, definitions), default, _prose(field.get("description", ""))]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _prose(text: str) -> str:
    """Tags in a sentence are meant to be read; in backquotes nothing needs escaping."""
    parts = text.split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def _item(task: TaskInfo) -> str:
    """The example as one sends it, without what may be left out."""
    item = task.example.item.model_dump(mode="json")
    return _json({key: value for key, value in item.items() if key == "solution" or value not in (None, {})})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(value: Any) -> str:
    """A number as one writes it, text without quotation marks, anything else as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "none" if value is None else _json(value)


def _type(schema: Schema, definitions: Schema) -> str:
    """A JSON schema in words, with its bounds."""
    if reference := schema.get("$ref"):
        return _type(definitions[reference.rpartition("/")[2]], definitions)
    if alternatives := schema.get("anyOf", schema.get("oneOf")):
        types = [_type(alternative, definitions) for alternative in alternatives]
        return ("; or " if any("," in one for one in types) else " or ").join(types)
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if values is not None:
        return " or ".join(f"`{_value(value)}`" for value in values)
    bounds = [words.format(schema[bound]) for bound, words in _BOUNDS.items() if bound in schema]
    return ", ".join([_kind(schema, definitions), *bounds])


def _kind(schema: Schema, definitions: Schema) -> str:
    kind = schema.get("type", "anything")
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return f"list of ({'; '.join(_type(item, definitions) for item in items)})"
    if kind == "object" and schema.get("properties"):
        fields = (f"`{name}`: {_type(field, definitions)}" for name, field in schema["properties"].items())
        return f"object with {'; '.join(fields)}"
    return _NAMES.get(kind, kind)


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        PAGE.write_text(text(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text():
        return 0
    print(f"{PAGE.name} is not what the tasks say; run python scripts/{Path(__file__).name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
