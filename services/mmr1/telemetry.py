"""How every service logs: one event a line, on standard output, with the service's name.

Three shapes: colours on a terminal, `key=value` when piped (what `mmr1 up` merges), JSON with MMR1_LOG_JSON=1 (what a
log collector wants). This file does not know where the lines go, and leaves other libraries' own loggers alone.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog


def configure_logging(service: str) -> structlog.typing.FilteringBoundLogger:
    """Set up structlog for this process and return its logger. MMR1_LOG_LEVEL (default info) is the threshold.

    Args:
        service: bound to every line, for collectors that see several processes: `rollout-0`, `learner`.
    """
    renderer, shared = _renderer()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(os.environ.get("MMR1_LOG_LEVEL", "info").lower()),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def _renderer() -> tuple[Any, list[Any]]:
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if os.environ.get("MMR1_LOG_JSON") == "1":
        return structlog.processors.JSONRenderer(), [stamp, structlog.processors.format_exc_info]
    if sys.stdout.isatty():
        return structlog.dev.ConsoleRenderer(), [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
    order = ["timestamp", "level", "event"]
    return (
        structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True),
        [stamp, structlog.processors.format_exc_info],
    )
