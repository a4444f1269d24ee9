"""Protobuf <-> nouns. The only place outside gRPC calls that touches generated messages."""

from mmr1.wire.convert import (
    decode_group,
    decode_prompt,
    encode_group,
    encode_prompt,
    group_from_message,
    group_to_message,
    prompt_from_message,
    prompt_to_message,
    version_from_message,
    version_to_message,
)
from mmr1.wire.schema import SchemaVersionError, check_schema, schema_refusal

__all__ = [
    "SchemaVersionError",
    "check_schema",
    "decode_group",
    "decode_prompt",
    "encode_group",
    "encode_prompt",
    "group_from_message",
    "group_to_message",
    "prompt_from_message",
    "prompt_to_message",
    "schema_refusal",
    "version_from_message",
    "version_to_message",
]
