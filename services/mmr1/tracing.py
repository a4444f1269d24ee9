"""Traces, where somebody collects them: one trace for each prompt, from its feeding to its acknowledgement.

A trace's ids follow from the prompt's, so no message carries them and every service finds the same trace by itself.
Off, and free, unless OTEL_EXPORTER_OTLP_ENDPOINT names a collector (OTLP over HTTP) and the extra `otel` is installed.
Knows no station of the way: those that call it do.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import structlog

from mmr1.records import PromptId

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_SECONDS = 3.0  # at the end of a process nobody waits longer for a collector

_log = structlog.get_logger(__name__)


class _Traces:
    """One process's. OpenTelemetry is imported here alone: a second that nobody waits for who collects no traces."""

    def __init__(self, service: str, instance: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        first: ContextVar[tuple[int, int] | None] = ContextVar("first", default=None)

        class Ids(RandomIdGenerator):
            """Random but for the first span of a prompt, which all the others must be able to name."""

            def generate_trace_id(self) -> int:
                ids = first.get()
                return ids[0] if ids else super().generate_trace_id()

            def generate_span_id(self) -> int:
                ids = first.get()
                return ids[1] if ids else super().generate_span_id()

        self._trace = trace
        self._first = first
        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self.provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("mmr1")

    def begin(self, id_: PromptId, name: str, began: float) -> None:
        token = self._first.set(_ids_of(id_))
        try:
            self._tracer.start_span(name, attributes=_attributes(id_, {}), start_time=_nanoseconds(began)).end()
        finally:
            self._first.reset(token)

    def record(self, name: str, id_: PromptId, began: float, attributes: dict[str, Any]) -> None:
        given = _attributes(id_, attributes)
        self._tracer.start_span(name, context=self._below(id_), attributes=given, start_time=_nanoseconds(began)).end()

    @contextmanager
    def span(self, name: str, id_: PromptId, attributes: dict[str, Any]) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name, context=self._below(id_), attributes=_attributes(id_, attributes)
        ):
            yield

    def _below(self, id_: PromptId) -> Any:
        """The prompt's first span as parent, whichever process it was made in."""
        trace_id, span_id = _ids_of(id_)
        sampled = self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        parent = self._trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=sampled)
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(parent))


_traces: _Traces | None = None


def start_tracing(service: str, instance: str) -> None:
    """From here on this process traces, if it is asked to and can."""
    global _traces
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        _traces = _Traces(service, instance)
    except ImportError as error:
        _log.warning("no_traces", reason=f"{error}", remedy="pip install 'mmr1[otel]', or unset the variable OTEL_...")


def stop_tracing() -> None:
    """What is not sent yet is sent now, or given up."""
    global _traces
    if _traces is not None:
        # OpenTelemetry's own deadlines are not kept: a collector that does not answer would be waited for longer.
        sending = threading.Thread(target=_traces.provider.force_flush, daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)
        _traces = None


def begin_trace(id_: PromptId, name: str, began: float) -> None:
    """The prompt's first span: from `began`, in seconds since 1970, until now. All others stand below it."""
    if _traces is not None:
        _traces.begin(id_, name, began)


def record_span(name: str, id_: PromptId, began: float, **attributes: str | float) -> None:
    """A span of the prompt from `began`, in seconds since 1970, until now."""
    if _traces is not None:
        _traces.record(name, id_, began, attributes)


def span(name: str, id_: PromptId, **attributes: str | float) -> AbstractContextManager[None]:
    """A span of the prompt around a block; calls to other services within it tell them of it."""
    return nullcontext() if _traces is None else _traces.span(name, id_, attributes)


def now() -> float:
    """When a span begins, for those above."""
    return time.time()


def _ids_of(id_: PromptId) -> tuple[int, int]:
    """Trace and first span. A run that is repeated under its name has the same: collectors tell them apart by time."""
    digest = hashlib.sha256(f"{id_.run}/{id_}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def _attributes(id_: PromptId, more: dict[str, Any]) -> dict[str, Any]:
    own = {"mmr1.run": id_.run, "mmr1.prompt": str(id_)}
    return {**own, **{f"mmr1.{name}": value for name, value in more.items()}}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
