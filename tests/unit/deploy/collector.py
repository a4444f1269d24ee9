"""A collector of traces for tests: takes OTLP over HTTP, as a real one does, and keeps every span that arrives."""

from __future__ import annotations

import contextlib
import gzip
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.unit.deploy.small_http import answering


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    url: str
    spans: list[Span] = field(default_factory=list)

    def wait_for(self, *names: str, each: int = 1, seconds: float = 20.0) -> dict[str, Span]:
        """One span of each name, as soon as `each` of all have come: processes send theirs in batches of their own."""
        deadline = time.monotonic() + seconds
        while missing := [name for name in names if sum(span.name == name for span in list(self.spans)) < each]:
            assert time.monotonic() < deadline, f"not {each} came of {missing}: {[span.name for span in self.spans]}"
            time.sleep(0.05)
        return {span.name: span for span in self.spans if span.name in names}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    spans: list[Span] = []

    def take(path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, bytes]:
        assert path == "/v1/traces"
        sent = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        spans.extend(_spans(ExportTraceServiceRequest.FromString(sent)))
        return "application/x-protobuf", ExportTraceServiceResponse().SerializeToString()

    with answering(take) as address:
        yield Collector(f"http://{address}", spans)


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for one in scope.spans:
                ids = one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex()
                times = one.start_time_unix_nano, one.end_time_unix_nano
                yield Span(service, one.name, *ids, *times, _values(one.attributes))


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
