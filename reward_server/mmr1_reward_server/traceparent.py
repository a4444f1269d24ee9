"""What a client sends of the trace that its caller is in. Imports OpenTelemetry only where traces are collected."""

from __future__ import annotations

import os

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def collects_traces() -> bool:
    """Whether somebody wants them; OpenTelemetry may still be missing."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def trace_headers() -> dict[str, str]:
    """Of the span at hand; none where there is no trace."""
    if not collects_traces():
        return {}
    try:
        from opentelemetry import propagate
    except ImportError:
        return {}
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers
