"""A weight update that cannot succeed says so at once, hears that it shall stop, and passes over dead servers.

The collective, Redis and gRPC are real; the servers receive into plain buffers instead of an engine.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
import redis
import redis.asyncio
import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from mmr1.errors import WeightUpdateError
from mmr1.local.plan import plan
from mmr1.records import SCHEMA_VERSION, PolicyVersion, TensorSpec
from mmr1.rollout_client import RolloutClient
from mmr1.streams import PromptConsumer, RunQueue
from mmr1.weight_plan import buckets, fingerprint, tensor_bytes
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from mmr1_learner import left_out
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.spread import generate_everywhere
from mmr1_learner.weights import WeightSender
from tests.conftest import free_port, make_prompt
from tests.models import small_config

LIMIT = 60.0  # seconds of each phase: a test that waits for one of them to pass has failed
BUCKET = 64


class Tensors:
    """Stands where Policy does: names and values are all that is sent."""

    made = None  # no device has to be waited for

    def named_tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(f"layer{i}.weight", torch.arange(24.0).view(4, 6) * i) for i in range(3)]

    def manifest(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", tuple(tensor.shape)) for name, tensor in self.named_tensors())


class Server(RolloutServiceServicer):
    """A rollout server without an engine. `on_init` runs before it joins."""

    def __init__(
        self, url: str, name: str, on_init: Callable[[Any], None] = lambda _: None, status_seconds: float = 0.0
    ) -> None:
        self.on_init, self.status_seconds = on_init, status_seconds
        self.on_update: Callable[[], object] = lambda: None
        self.calls: list[str] = []
        self.released = threading.Event()
        self.group: Any = None
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        add_RolloutServiceServicer_to_server(self, self._grpc)
        self.address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()
        lease(url, name, self.address)

    def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        time.sleep(self.status_seconds)
        return pb.GetStatusResponse(schema_version=SCHEMA_VERSION, state="SERVER_STATE_ACCEPTS_WEIGHTS")

    def InitWeightTransfer(self, request: Any, context: Any) -> pb.InitWeightTransferResponse:
        self.calls.append("Init")
        self.on_init(context)
        limit = timedelta(seconds=request.deadline_seconds)
        host, port, size = request.master_address, request.master_port, request.world_size
        store = TCPStore(host, port, size, is_master=False, timeout=timedelta(seconds=1), wait_for_workers=False)
        store.set_timeout(limit)
        self.group = ProcessGroupGloo(PrefixStore(request.store_prefix, store), request.rank, size, limit)
        self.tensors = [TensorSpec(spec.name, spec.dtype, tuple(spec.shape)) for spec in request.tensors]
        return pb.InitWeightTransferResponse()

    def StartWeightUpdate(self, request: Any, context: Any) -> pb.StartWeightUpdateResponse:
        self.calls.append("Start")
        return pb.StartWeightUpdateResponse()

    def UpdateWeights(self, request: Any, context: Any) -> pb.UpdateWeightsResponse:
        self.calls.append("Update")
        self.on_update()
        found = []
        for bucket in buckets(self.tensors, BUCKET):
            sizes = [tensor_bytes(spec) for spec in bucket]
            flat = torch.empty(sum(sizes), dtype=torch.uint8)
            options = BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self.group.broadcast([flat], options).wait()
            for spec, data in zip(bucket, torch.split(flat, sizes), strict=True):
                found.append(pb.Fingerprint(name=spec.name, digest=fingerprint(data.numpy().data)))
        return pb.UpdateWeightsResponse(fingerprints=found)

    def FinishWeightUpdate(self, request: Any, context: Any) -> pb.FinishWeightUpdateResponse:
        return pb.FinishWeightUpdateResponse(num_parameters=3, num_parameters_written=3)

    def Resume(self, request: Any, context: Any) -> pb.ResumeResponse:
        self.calls.append("Resume")
        return pb.ResumeResponse()

    def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        self.calls.append("Generate")
        self.released.wait(LIMIT)
        return pb.GenerateResponse()

    def stop(self) -> None:
        self.released.set()
        self._grpc.stop(0)


def lease(url: str, name: str, address: str) -> None:
    async def register() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            consumer = PromptConsumer(client, "test", name, claim_idle_seconds=60, max_deliveries=3)
            await consumer.register(address, "accepts_weights", None, 60)

    asyncio.run(register())


@pytest.fixture
def sender(redis_url: str, tmp_path: Any) -> Iterator[WeightSender]:
    queue = RunQueue(redis.Redis.from_url(redis_url), "test")
    queue.become_writer()
    config = small_config(
        tmp_path, run="test", weight_update_deadline_seconds=LIMIT, lease_seconds=0.2, weight_bucket_bytes=BUCKET
    )
    policy: Any = Tensors()
    sender = WeightSender(config, queue, policy, "127.0.0.1")
    yield sender
    sender.close()


@pytest.fixture
def start(redis_url: str) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(name: str, **options: Any) -> Server:
        servers.append(Server(redis_url, name, **options))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def stop_after(seconds: float) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def tick() -> None:
        if time.monotonic() > end:
            raise StopRequestedError

    return tick


VERSION = PolicyVersion(1, 1)


def test_a_dead_server_with_a_lease_is_passed_over(sender: WeightSender, start: Any, redis_url: str) -> None:
    alive = start("alive")
    lease(redis_url, "dead", f"127.0.0.1:{free_port()}")
    begun = time.monotonic()
    assert sender.update(VERSION, lambda _: 0.25, lambda: None).num_servers == 1
    assert sender.update(VERSION._replace(number=2), None, lambda: None).probe_max_abs_dlogp is None
    assert time.monotonic() - begun < LIMIT / 3
    assert alive.calls.count("Resume") == 2
    assert sender.behind(VERSION, lambda: None)[0].server_id == "alive", "its lease here never names a version"


def test_an_update_that_nobody_will_wait_for_again_is_tried_once(sender: WeightSender, start: Any) -> None:
    """A busy server takes its time to say how it is: that is part of the first try."""
    server = start("busy", status_seconds=0.3)
    called_before: list[str] = []

    def between() -> None:
        raise WeightUpdateError("nobody waits")

    def closed() -> None:
        called_before.extend(server.calls)

    assert sender.update(VERSION, None, lambda: None, None, between, closed).num_servers == 1
    assert called_before == ["Init", "Start"]


def test_there_is_no_other_try_when_between_raises(sender: WeightSender, start: Any) -> None:
    start("broken", on_init=lambda context: context.abort(grpc.StatusCode.INTERNAL, "no"))

    def between() -> None:
        raise WeightUpdateError("nobody waits")

    with pytest.raises(WeightUpdateError, match="nobody waits"):
        sender.update(VERSION, None, lambda: None, None, between)


def test_the_collective_listens_on_the_runs_own_address(sender: WeightSender, start: Any) -> None:
    """Wherever this machine's name leads: here to another address of the loopback than the run's."""
    start("a")
    sender._master_address = "127.0.0.2"
    before = listening()
    sender.update(VERSION, None, lambda: None)
    opened = [address.ip for address in listening() - before]
    assert opened.count("127.0.0.2") == 2, "the store and gloo's device"
    assert "::" not in opened


def listening() -> set[Any]:
    return {one.laddr for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def test_a_server_that_refuses_is_left_out_of_the_next_updates(
    sender: WeightSender, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEMANTICS 11: it serves nothing until a full update has reached it; the others go on."""
    passed = 0.0  # seconds beside those that the test takes: how long that is says nothing of the pause
    monkeypatch.setattr(left_out, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))
    monkeypatch.setattr(left_out, "_PAUSE_SECONDS", 600.0)
    good, bad = start("good"), start("bad", on_init=lambda context: context.abort(grpc.StatusCode.ABORTED, "no room"))
    begun = time.monotonic()
    assert sender.update(VERSION, None, lambda: None).num_servers == 1
    assert [member.server_id for member in sender.behind(VERSION, lambda: None)] == ["good"], "here it names no version"
    assert sender.update(VERSION._replace(number=2), None, lambda: None).num_servers == 1
    assert time.monotonic() - begun < LIMIT / 3
    assert bad.calls == ["Init"] and good.calls.count("Resume") == 2
    bad.on_init = lambda _: None
    passed = 601.0
    assert len(sender.behind(VERSION, lambda: None)) == 2
    assert sender.update(VERSION._replace(number=3), None, lambda: None).num_servers == 2
    assert bad.calls[-1] == "Resume"


@pytest.mark.parametrize("late_by", [0.0, 0.2])
def test_a_server_that_drops_out_of_the_broadcast_is_found_out(
    sender: WeightSender, start: Any, late_by: float
) -> None:
    """It answers, and takes the healthy one with it each time: whichever fails first is not always the culprit."""
    good, bad = start("good"), start("bad")

    def drop_out() -> None:
        bad.group = None  # its connections close
        time.sleep(late_by)
        raise RuntimeError("the engine has broken")

    bad.on_update = drop_out
    assert sender.update(VERSION, None, lambda: None).num_servers == 1
    assert good.calls.count("Resume") == 1 and "Resume" not in bad.calls


def test_a_server_that_cannot_be_proved_is_left_out(sender: WeightSender, start: Any) -> None:
    """SEMANTICS 12: admission of it is not opened."""
    good, bad = start("good"), start("bad")

    def probe(client: RolloutClient) -> float:
        if client.address == bad.address:
            raise WeightUpdateError("its log-probabilities are another model's")
        return 0.0

    assert sender.update(VERSION, probe, lambda: None).num_servers == 1
    assert good.calls.count("Resume") == 1 and "Resume" not in bad.calls


def test_phases_are_of_all_tries(sender: WeightSender, start: Any) -> None:
    """Nothing is sampled while a failed one is tried again: that is a part of how long an update takes."""
    start("only")
    tries = iter([WeightUpdateError("another model's"), None])

    def probe(_: RolloutClient) -> float:
        time.sleep(0.3)
        if (error := next(tries)) is not None:
            raise error
        return 0.0

    result = sender.update(VERSION, probe, lambda: None)
    assert set(result.phases) == {"closing", "weights", "proof", "retrying", "opening"}
    assert result.phases["proof"] >= 0.6 and result.phases["retrying"] > 0
    assert sender.update(VERSION._replace(number=2), None, lambda: None).phases.keys() == result.phases.keys() - {
        "retrying"
    }


def test_an_update_fails_as_soon_as_the_only_server_refuses_to_join(sender: WeightSender, start: Any) -> None:
    """The learner's own end of the collective would wait for it until the deadline."""
    refusing = start("refusing", on_init=lambda context: context.abort(grpc.StatusCode.ABORTED, "no room"))
    begun = time.monotonic()
    with pytest.raises(WeightUpdateError, match="ABORTED: no room"):
        sender.update(VERSION, None, lambda: None)
    assert time.monotonic() - begun < LIMIT / 2
    assert refusing.calls.count("Init") == 4, "each try joins anew"
    sender.close()
    ending = threading.Thread(target=sender._pool.shutdown)
    ending.start()
    ending.join(LIMIT / 4)
    assert not ending.is_alive(), "the process could not end: a thread of it still waits for the servers"


def test_a_stop_is_heard_while_a_server_does_not_join(sender: WeightSender, start: Any) -> None:
    frozen = start("frozen")
    frozen.on_init = lambda _: frozen.released.wait(LIMIT)
    begun = time.monotonic()
    with pytest.raises(StopRequestedError):
        sender.update(VERSION, None, stop_after(1.0))
    assert time.monotonic() - begun < LIMIT / 4
    assert frozen.calls == ["Init"]


def test_what_is_no_fault_of_the_transport_is_not_tried_again(sender: WeightSender, start: Any) -> None:
    server = start("a")

    def broken_probe(_: RolloutClient) -> float:
        raise RuntimeError("generator raised StopIteration")

    with pytest.raises(RuntimeError, match="StopIteration"):
        sender.update(VERSION, broken_probe, lambda: None)
    assert server.calls == ["Init", "Start", "Update"]


def test_an_engine_is_waited_for_as_long_as_it_may_take_to_load(sender: WeightSender, tmp_path: Path) -> None:
    (rollout,) = plan(small_config(tmp_path, redis_url="redis://127.0.0.1:1")).rollouts
    waits = inspect.signature(sender.wait_for_servers).parameters["timeout_seconds"].default
    assert waits == rollout.ready_deadline_seconds
    with pytest.raises(WeightUpdateError, match="no rollout server answers after 0 s"):
        sender.wait_for_servers(1, lambda: None, timeout_seconds=0.2)


def test_an_evaluation_ends_between_two_problems(start: Any) -> None:
    server = start("a")
    client = RolloutClient(server.address, "test", 1)
    begun = time.monotonic()
    with pytest.raises(StopRequestedError):
        generate_everywhere([client], [make_prompt(position) for position in range(100)], stop_after(1.0))
    assert time.monotonic() - begun < LIMIT / 4
    client.close()
    server.released.set()
    time.sleep(0.5)
    assert server.calls.count("Generate") <= 32
