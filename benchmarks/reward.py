"""How fast the reward server is, in ratios of one run: to a bare echo on the same uvicorn, and to plain calls.

    python benchmarks/reward.py                  # about 40 seconds; server and worker on one core, the load on another
    python benchmarks/reward.py --soak 1200      # full load; slope of memory, errors, lost items

It needs what the server needs and no more. Absolute numbers are this machine's; only ratios within one run mean
anything elsewhere. Besides the clock it reads the processor time of the processes, which a busy machine disturbs less.
Every answer is held against what the tasks' examples say. It measures no quality of rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from http_load import Load, drive, family, measured, pinned, resident_megabytes, serving, to_request
from rapidfuzz.distance import Indel, Levenshtein
from scipy.optimize import linear_sum_assignment

from mmr1_reward_server import __version__
from mmr1_reward_server.api import Item, ScoreResponse
from mmr1_reward_server.boxes import pairwise_iou
from mmr1_reward_server.matching import match_overlaps
from mmr1_reward_server.plugins import build_registry
from mmr1_reward_server.registry import InvalidOutput, Registry
from mmr1_reward_server.scoring import score_item

NUM_CONNECTIONS = 32
BATCH_ITEMS = 256
NUM_BATCHES = 4  # in flight
MAX_RESPONSE_CHARS = 100_000
NUM_BOXES = 100
OCR_CHARS = 2000


def reward_server(core: int | None, workers: int) -> Any:
    return serving(core, "-m", "mmr1_reward_server", "--workers", str(workers))


def serve_echo(port: int) -> None:
    """The bare endpoints that the server is measured against."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/json")
    async def echo_json(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.post("/bytes")
    async def echo_bytes(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    uvicorn.run(app, port=port, log_config=None, access_log=False, server_header=False)


def mixed_batch(registry: Registry, num_items: int) -> tuple[bytes, bytes]:
    """Every task's example in turn, and the whole answer that these have to get, as bytes."""
    examples = [task.example for task in registry if task.example is not None]
    chosen = [examples[number % len(examples)] for number in range(num_items)]
    items = [{**example.item.model_dump(mode="json"), "id": str(number)} for number, example in enumerate(chosen)]
    results = [example.result.model_copy(update={"id": str(number)}) for number, example in enumerate(chosen)]
    expected = ScoreResponse(results=results, version=__version__).model_dump_json().encode()
    return _json(items), expected


def single_item(registry: Registry) -> tuple[bytes, bytes]:
    example = registry["counting"].example
    assert example is not None
    expected = ScoreResponse(results=[example.result], version=__version__).model_dump_json().encode()
    return _json([example.item.model_dump(mode="json")]), expected


def _json(items: Sequence[Any]) -> bytes:
    return json.dumps({"items": items}, separators=(",", ":")).encode()


def rates_of(call: Callable[[], int], seconds: float) -> tuple[float, float]:
    """What `call` does, a second and a second of processor time; it returns how many it did."""
    call()
    count = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        count += call()
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu_began)


def scoring_alone(registry: Registry, body: bytes) -> Callable[[], int]:
    """Only the tasks' scoring functions, over samples that are read and checked already."""
    items = [Item.model_validate(one) for one in json.loads(body)["items"]]
    calls = [(registry[item.task].score, registry[item.task].read(item)) for item in items]

    def call() -> int:
        for score, sample in calls:
            with suppress(InvalidOutput):
                score(sample)
        return len(calls)

    return call


def scoring_whole(registry: Registry, body: bytes) -> Callable[[], int]:
    """From a dictionary to a checked verdict, as a program does that has the tasks as a library and no server."""
    items = json.loads(body)["items"]

    def call() -> int:
        for one in items:
            score_item(registry, Item.model_validate(one), max_response_chars=MAX_RESPONSE_CHARS)
        return len(items)

    return call


def compare(server_core: int, load_core: int, rounds: int, seconds: float) -> None:
    registry = build_registry()
    body, expected = single_item(registry)
    batch, batch_expected = mixed_batch(registry, BATCH_ITEMS)
    os.sched_setaffinity(0, {load_core})
    plain: dict[str, list[tuple[float, float]]] = {"score_item": [], "task.score": []}
    singles: dict[str, list[Load]] = {"/bytes": [], "/json": [], "/v1/score": []}
    batches: list[Load] = []
    with serving(server_core, __file__, "--serve-echo") as echo, reward_server(server_core, 1) as score:
        batch_request = to_request("/v1/score", batch)
        measured(score, batch_request, batch_expected, 0.5, 1)  # what tasks load on first use is not what is measured
        for _ in range(rounds):
            for path, loads in singles.items():
                server, wanted = (score, expected) if path == "/v1/score" else (echo, body)
                loads.append(measured(server, to_request(path, body), wanted, seconds, NUM_CONNECTIONS))
            batches.append(measured(score, batch_request, batch_expected, seconds, NUM_BATCHES))
            with pinned(server_core):
                plain["score_item"].append(rates_of(scoring_whole(registry, batch), seconds))
                plain["task.score"].append(rates_of(scoring_alone(registry, batch), seconds))
    _report_singles(singles)
    _report_batches(batches, plain)
    _report_functions(registry, seconds)
    num_bad = sum(load.num_errors + load.num_lost for loads in (*singles.values(), batches) for load in loads)
    print(f"wrong or missing answers: {num_bad}")
    sys.exit(1 if num_bad else 0)


def _report_singles(singles: dict[str, list[Load]]) -> None:
    columns = f"{'requests/s':>12}{'per CPU s':>12}{'p50 ms':>9}{'p99 ms':>9}{'p99/p50':>9}"
    print(f"{f'one item, {NUM_CONNECTIONS} connections':<28}{columns}")
    for path, loads in singles.items():
        rate = statistics.median(load.rate for load in loads)
        of_cpu = statistics.median(load.rate_of_cpu for load in loads)
        p50, p99 = (statistics.median(load.percentile(share) for load in loads) for share in (0.5, 0.99))
        print(f"{path:<28}{rate:>12.0f}{of_cpu:>12.0f}{1e3 * p50:>9.2f}{1e3 * p99:>9.2f}{p99 / p50:>9.2f}")
    for path in ("/bytes", "/json"):
        pairs = list(zip(singles["/v1/score"], singles[path], strict=True))
        _ratio(f"score to echo of {path[1:]}", [score.rate / echo.rate for score, echo in pairs])
        _ratio("  by processor time", [score.rate_of_cpu / echo.rate_of_cpu for score, echo in pairs])
    _ratio("p99/p50 of score", [load.percentile(0.99) / load.percentile(0.5) for load in singles["/v1/score"]])


def _report_batches(batches: list[Load], plain: dict[str, list[tuple[float, float]]]) -> None:
    rate = statistics.median(load.rate for load in batches) * BATCH_ITEMS
    print(f"batches of {BATCH_ITEMS} mixed items: {rate:.0f} items/s")
    for name, rates in plain.items():
        print(f"{f'plain calls of {name}':<28}{statistics.median(rate for rate, _ in rates):>12.0f} items/s")
        pairs = list(zip(batches, rates, strict=True))
        _ratio(f"batches to {name}", [load.rate * BATCH_ITEMS / one for load, (one, _) in pairs])
        _ratio("  by processor time", [load.rate_of_cpu * BATCH_ITEMS / one for load, (_, one) in pairs])


def _report_functions(registry: Registry, seconds: float) -> None:
    """Single scorers against the library call at their core."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 900, (2, NUM_BOXES, 2))
    first, second = (np.concatenate([low, low + rng.uniform(10, 100, low.shape)], axis=1) for low in corners)
    overlaps = pairwise_iou(first, second)
    _milliseconds(
        f"matching of {NUM_BOXES} x {NUM_BOXES} boxes, IoU included",
        lambda: match_overlaps(pairwise_iou(first, second), 0.0),
        "linear_sum_assignment alone",
        lambda: linear_sum_assignment(overlaps, maximize=True),
        seconds,
    )
    text = "".join(random.Random(0).choices("abcdefghij    ", k=OCR_CHARS))
    other = "".join(random.Random(1).choices("abcdefghij    ", k=OCR_CHARS))
    item = Item(id="0", task="ocr", response=other, solution=text)
    _milliseconds(
        f"ocr of {OCR_CHARS} characters, nothing alike",
        lambda: score_item(registry, item, max_response_chars=MAX_RESPONSE_CHARS),
        "rapidfuzz's distances alone",
        lambda: (Levenshtein.distance(other, text), Indel.distance(other, text)),
        seconds,
    )


def _milliseconds(
    title: str, call: Callable[[], object], core: str, inner: Callable[[], object], seconds: float
) -> None:
    def once(function: Callable[[], object]) -> Callable[[], int]:
        return lambda: [function()].__len__()

    whole, part = (1e3 / rates_of(once(function), seconds)[0] for function in (call, inner))
    print(f"{title}: {whole:.3f} ms ({core}: {part:.3f} ms, {part / whole:.2f} of it)")


def _ratio(title: str, ratios: list[float]) -> None:
    listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{title:<28}{statistics.median(ratios):>12.2f}   of each round: {listed}")


def soak(seconds: float, workers: int) -> None:
    """Full load of batches of mixed items; prints what grew and what went wrong or missing."""
    registry = build_registry()
    batch, expected = mixed_batch(registry, BATCH_ITEMS)
    memory: dict[str, list[tuple[float, float]]] = {}

    async def run(port: int, server: int) -> Load:
        driving = asyncio.ensure_future(drive(port, to_request("/v1/score", batch), expected, seconds, 8))
        began = time.monotonic()
        while not driving.done():
            await asyncio.wait({driving}, timeout=max(0.2, seconds / 200))
            for name, process in family(server).items():
                memory.setdefault(name, []).append((time.monotonic() - began, resident_megabytes(process)))
        return driving.result()

    with reward_server(None, workers) as (port, server):
        load = asyncio.run(run(port, server))
    num_items = len(load.latencies) * BATCH_ITEMS
    print(
        f"{load.seconds:.0f} s, {num_items} items in {len(load.latencies)} batches: {num_items / load.seconds:.0f} a s"
    )
    print(
        f"wrong answers {load.num_errors}, lost {load.num_lost}, worker processes seen {len(memory) - 1} of {workers}"
    )
    for name, points in memory.items():
        settled = [point for point in points if point[0] > seconds * 0.2]
        if len(settled) > 2:
            slope = 3600 * statistics.linear_regression(*zip(*settled, strict=True)).slope
            print(f"{name:<16}{settled[0][1]:>8.1f} MB at 20 %, {settled[-1][1]:.1f} MB at the end, {slope:+.2f} MB/h")
    sys.exit(1 if load.num_errors or load.num_lost else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=2, help="of the soak")
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_echo:
        serve_echo(options.port)
    elif options.soak is not None:
        soak(options.soak, options.workers)
    else:
        compare(options.server_core, options.load_core, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
