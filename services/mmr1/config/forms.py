"""One reading of an option's value, whichever source it comes from: words of a command line, the environment, YAML.

The command line and the environment give text, YAML gives text, numbers, lists or nothing. What an option's type says
about such a value is decided here, once; whether the value is a good one is decided where the option stands.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, model_validator
from pydantic.fields import FieldInfo


class GivenForms(BaseModel):
    """Base of a configuration: every source may write a choice of numbers (`zero_stage`) as the number or its text."""

    @model_validator(mode="before")
    @classmethod
    def _one_reading(cls, given: dict[str, Any]) -> dict[str, Any]:
        fields = cls.model_fields
        return {name: _read(fields[name], value) if name in fields else value for name, value in given.items()}


def _read(field: FieldInfo, value: Any) -> Any:
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        # pydantic takes a number's text for a number, but not for a choice among numbers.
        return {str(choice): choice for choice in get_args(field.annotation)}.get(value, value)
    return value
