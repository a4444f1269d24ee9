"""One reading of an option's value, whichever source it comes from: words of a command line, the environment, YAML.

The command line and the environment give text, YAML gives text, numbers, lists or nothing. What an option's type says
about such a value is decided here, once; whether the value is a good one is decided where the option stands.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, model_validator
from pydantic.fields import FieldInfo

WHOLE_TEXTS = frozenset({"stop"})  # lists whose texts may hold blanks and commas: they are never cut


class GivenForms(BaseModel):
    """Base of a configuration: every source may write a value in the same forms.

    - A list: one value, several (words, or a YAML list), or one text of values with blanks or commas between them. An
      empty text and YAML's null are the empty list.
    - A choice of numbers (`zero_stage`): the number or its text.
    - A mapping: a mapping, or its JSON text. An empty text and YAML's null are the empty mapping.
    """

    @model_validator(mode="before")
    @classmethod
    def _one_reading(cls, given: dict[str, Any]) -> dict[str, Any]:
        fields = cls.model_fields
        return {name: _read(name, fields[name], value) if name in fields else value for name, value in given.items()}


def _read(name: str, field: FieldInfo, value: Any) -> Any:
    if get_origin(field.annotation) is list:
        return _list(value, whole=name in WHOLE_TEXTS)
    if get_origin(field.annotation) is dict:
        return _mapping(name, value)
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        # pydantic takes a number's text for a number, but not for a choice among numbers.
        return {str(choice): choice for choice in get_args(field.annotation)}.get(value, value)
    return value


def _mapping(name: str, value: Any) -> Any:
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"option {name!r}: {value!r} is not a mapping in JSON ({error})") from None


def _list(value: Any, *, whole: bool) -> list[Any]:
    if value is None or value == "":
        return []
    if not isinstance(value, list | tuple):
        value = [value]
    if whole:
        return list(value)
    return [word for item in value for word in (item.replace(",", " ").split() if isinstance(item, str) else [item])]
