"""Structured log lines on stderr: key=value, or JSON when MMR1_LOG_JSON=1. It knows nothing of who logs what."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any


class StructuredFormatter(logging.Formatter):
    """`logger.info("started", extra={"fields": {"port": 8000}})` -> `time=... level=info event=started port=8000`"""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": "reward-server",
            "event": record.getMessage(),
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
    """Sends everything from INFO on to stderr; of uvicorn, only its warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(StructuredFormatter(as_json=os.environ.get("MMR1_LOG_JSON") == "1"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
