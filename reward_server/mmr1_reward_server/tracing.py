"""The server's span below its caller's, for requests that come with a trace (W3C traceparent).

Off, and free, unless OTEL_EXPORTER_OTLP_ENDPOINT names a collector (OTLP over HTTP) and the extra `otel` is installed.
Requests without a traceparent are not traced: probes and scrapes would be most of what is collected.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .traceparent import collects_traces

_HEADER = b"traceparent"
_FLUSH_SECONDS = 3.0  # nobody waits longer for a collector

logger = logging.getLogger(__name__)


def make_provider() -> Any:
    """OpenTelemetry's, of this server, or None where nobody collects."""
    if not collects_traces():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        remedy = "pip install 'mmr1-reward-server[otel]', or unset the variable OTEL_..."
        fields = {"reason": str(error), "remedy": remedy}
        logger.warning("no traces", extra={"fields": fields})
        return None
    resource = Resource.create({"service.name": "mmr1-reward-server"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def flush(provider: Any) -> None:
    """At the end: what is not sent yet is sent now, or given up. OpenTelemetry's own deadlines are not kept."""
    sending = threading.Thread(target=provider.force_flush, daemon=True)
    sending.start()
    sending.join(_FLUSH_SECONDS)


class Traced:
    """A server's span around each request that comes with a trace."""

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        self._app = app
        self._tracer = provider.get_tracer("mmr1_reward_server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope["headers"]) if scope["type"] == "http" else {}
        if _HEADER not in named:
            await self._app(scope, receive, send)
            return
        from opentelemetry import propagate, trace

        caller = propagate.extract({_HEADER.decode(): named[_HEADER].decode("latin-1")})
        kind = trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(scope["method"], context=caller, kind=kind) as span:

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self._app(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
