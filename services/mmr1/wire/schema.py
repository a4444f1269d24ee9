"""Which schema versions this build understands: its own, and one older."""

from __future__ import annotations

from mmr1.records import SCHEMA_VERSION

OLDEST_SCHEMA_VERSION = max(1, SCHEMA_VERSION - 1)


class SchemaVersionError(Exception):
    """A message was written by a build that is too old or too new. Names both versions."""


def check_schema(version: int, what: str) -> None:
    """Raise SchemaVersionError unless `version` is this build's or one older."""
    if not OLDEST_SCHEMA_VERSION <= version <= SCHEMA_VERSION:
        raise schema_refusal(version, what)


def schema_refusal(version: int, what: str) -> SchemaVersionError:
    """For `what`, which speaks `version`."""
    return SchemaVersionError(
        f"{what} has schema version {version}, this build speaks {OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}; "
        "run the same release of MMR1 everywhere"
    )
