"""How every service logs: one event a line, on standard output, with the service's name.

Three shapes: colours on a terminal, `key=value` when piped (what `mmr1 up` merges), JSON with MMR1_LOG_JSON=1 (what a
log collector wants, of several runs perhaps: these lines have the run too, and the group and the version at hand). This
file does not know where the lines go, and leaves other libraries' own loggers alone.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog

# Of the process, whatever thread or task a line comes from; context variables are of one task.
_process_fields: dict[str, str] = {}


def configure_logging(service: str) -> structlog.typing.FilteringBoundLogger:
    """Set up structlog for this process and return its logger. MMR1_LOG_LEVEL (default info) is the threshold.

    Args:
        service: bound to every line, for collectors that see several processes: `rollout-0`, `learner`.
    """
    renderer, shared = _renderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_process_fields,
            structlog.processors.add_log_level,
            *shared,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(os.environ.get("MMR1_LOG_LEVEL", "info").lower()),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    _process_fields.clear()
    _process_fields["service"] = service
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def works_for(run: str) -> None:
    """From here on every JSON line of this process names the run; people who read the others know it."""
    if _is_json():
        _process_fields["run"] = run


def following(**fields: object) -> None:
    """From here on the JSON lines of this task, or of this thread, have these too: `prompt`, `version`, `step`."""
    if _is_json():
        plain = {name: value if isinstance(value, int) else str(value) for name, value in fields.items()}
        structlog.contextvars.bind_contextvars(**plain)


def _add_process_fields(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**_process_fields, **event}


def _is_json() -> bool:
    return os.environ.get("MMR1_LOG_JSON") == "1"


def _renderer() -> tuple[Any, list[Any]]:
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if _is_json():
        return structlog.processors.JSONRenderer(), [stamp, structlog.processors.format_exc_info]
    if sys.stdout.isatty():
        return structlog.dev.ConsoleRenderer(), [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
    order = ["timestamp", "level", "event"]
    return (
        structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True),
        [stamp, structlog.processors.format_exc_info],
    )
