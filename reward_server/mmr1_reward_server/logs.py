"""Structured log lines on standard output: key=value, or JSON with MMR1_LOG_JSON=1. It decides not what is logged."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any


class StructuredFormatter(logging.Formatter):
    """`logger.info("started", extra={"fields": {"port": 80}})` -> `timestamp=... level=info event=started port=80`"""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "service": "reward",
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields, default=str)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: object) -> str:
    """A value as one word of one line: what a request says must not be able to forge a line."""
    text = str(value)
    plain = text.isprintable() and text.isascii() and not any(mark in text for mark in ' "=')
    return text if plain and text else json.dumps(text)


def configure_logging() -> None:
    """Sends everything from MMR1_LOG_LEVEL (info) on to standard output; of uvicorn, only its warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(StructuredFormatter(as_json=os.environ.get("MMR1_LOG_JSON") == "1"))
    named = os.environ.get("MMR1_LOG_LEVEL", "info").upper()
    level = logging.getLevelNamesMapping().get(named, logging.INFO)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
