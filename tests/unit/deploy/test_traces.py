"""One prompt's way is one trace, through processes that tell each other nothing but what they always do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmr1 import tracing
from mmr1.records import PromptId
from mmr1_reward_server.tracing import flush, make_provider
from tests.unit.deploy.collector import Collector, collecting
from tests.unit.deploy.exposed import ROOT
from tests.unit.learner.run_of_a_test import Run
from tests.unit.rollout_server.test_worker import Bench, reward_server, until, working

FLUSH_SECONDS = 3.0


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found
        tracing.stop_tracing()


async def test_from_the_feeder_over_the_reward_server_to_the_acknowledgement(
    collector: Collector, redis_url: str, tmp_path: Path
) -> None:
    tracing.start_tracing("test", "one process for all")
    bench = Bench(redis_url, tmp_path, reward_server())
    await bench.serve()
    bench.feed(0, 1)
    async with working(bench):
        await until(lambda: bench.queue.ledger().num_groups == 2)
    groups = bench.queue.read(2)
    bench.queue.acknowledge([group.prompt.id for group in groups])
    await bench.redis.aclose()
    tracing.stop_tracing()
    collector.wait_for("POST /v1/score", "acknowledge", each=2)

    traces = {span.trace for span in collector.spans}
    assert len(traces) == 2, "one for each prompt"
    for trace in traces:
        spans = {span.name: span for span in collector.spans if span.trace == trace}
        first = spans.pop("feed")
        request = spans.pop("POST /v1/score")
        assert set(spans) == {"take", "prepare", "generate", "score", "publish", "read", "acknowledge"}
        assert first.parent == "" and {span.parent for span in spans.values()} == {first.id}
        assert request.parent == spans["score"].id and request.service == "mmr1-reward-server"
        assert request.attributes["http.response.status_code"] == 200
        order = [
            first,
            spans["prepare"],
            spans["generate"],
            spans["score"],
            spans["publish"],
            spans["read"],
            spans["acknowledge"],
        ]
        assert [span.began for span in order] == sorted(span.began for span in order)
        assert all(span.began <= span.ended for span in order)
        assert spans["score"].began <= request.began <= request.ended <= spans["score"].ended
        assert len({span.attributes["mmr1.prompt"] for span in (first, *spans.values())}) == 1
        assert spans["generate"].attributes["mmr1.policy_version"] == "1.1"


def test_every_process_finds_the_same_trace(collector: Collector) -> None:
    """The ids are those of the prompt alone; another attempt, place or run is another trace."""
    ids = [PromptId("a", 1, 0), PromptId("a", 1, 1), PromptId("a", 2, 0), PromptId("b", 1, 0)]
    seen: list[list[str]] = []
    for process in ("one", "another"):
        tracing.start_tracing("test", process)
        for id_ in ids:
            tracing.record_span(process, id_, tracing.now())
        tracing.stop_tracing()
        collector.wait_for(process, each=len(ids))
        seen.append([span.trace for span in collector.spans if span.name == process])
    assert seen[0] == seen[1] and len(set(seen[0])) == len(ids)


def test_a_step_is_in_the_trace_of_each_of_its_groups(collector: Collector, redis_url: str, tmp_path: Path) -> None:
    run = Run(redis_url, tmp_path)
    tracing.start_tracing("mmr1-learner", "learner-0")
    run.learner().collect()
    tracing.stop_tracing()
    collector.wait_for("step", each=2)
    steps = [span for span in collector.spans if span.name == "step"]
    assert sorted(span.attributes["mmr1.prompt"] for span in steps) == ["0/0", "1/0"]
    assert {span.attributes["mmr1.step"] for span in steps} == {1}
    firsts = {span.trace: span.id for span in collector.spans if span.name == "feed"}
    assert all(span.parent == firsts[span.trace] for span in steps)


async def test_a_request_without_a_trace_is_in_none(collector: Collector) -> None:
    import httpx

    async with httpx.AsyncClient(transport=reward_server(), base_url="http://reward") as client:
        assert (await client.get("/healthz")).status_code == 200
        marked = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        assert (await client.get("/healthz", headers=marked)).status_code == 200
        assert (await client.get("/healthz", headers={"traceparent": "nonsense"})).status_code == 200
    collector.wait_for("GET /healthz")
    assert collector.spans[0].trace == "1" * 32 and collector.spans[0].parent == "2" * 16


OFF = """
import sys
from mmr1 import tracing
from mmr1.records import PromptId
from mmr1_reward_server.tracing import flush, make_provider
from mmr1.telemetry import configure_logging
from mmr1_reward_server.app import create_app
from mmr1_reward_server.settings import Settings
from mmr1_reward_server.traceparent import trace_headers

configure_logging("learner-0")
tracing.start_tracing("mmr1-learner", "learner-0")
with tracing.span("score", PromptId("a", 1)):
    tracing.begin_trace(PromptId("a", 1), "feed", tracing.now())
    assert trace_headers() == {}
create_app(Settings())
tracing.stop_tracing()
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def without_a_collector(first: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", first + OFF],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_where_nobody_collects_nothing_is_even_imported() -> None:
    assert without_a_collector("").strip() == "[]"


def test_a_collector_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tracing.start_tracing("test", "a")
        tracing.begin_trace(PromptId("a", 1), "feed", tracing.now())
        provider = make_provider()
        provider.get_tracer("test").start_span("request").end()
        began = time.monotonic()
        tracing.stop_tracing()
        flush(provider)
        assert time.monotonic() - began < 2 * FLUSH_SECONDS + 1


def test_without_the_extra_services_run_and_say_so() -> None:
    missing = "import sys; sys.modules['opentelemetry'] = None\n"
    told = without_a_collector(missing, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert "event=no_traces" in told and "mmr1[otel]" in told
