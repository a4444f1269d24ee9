"""A real rollout server as a process, and a learner's end of the weight transfer, for tests that drive both."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch.distributed import BroadcastOptions, DistStoreError, PrefixStore, ProcessGroupGloo, TCPStore

from mmr1.records import PolicyVersion, TensorSpec
from mmr1.rollout_client import RolloutClient, WeightGroup
from mmr1.weight_plan import buckets, fingerprint
from tests.conftest import free_port

SERVICE = "mmr1.v1.RolloutService"
WEIGHTS = f"{SERVICE}/weights"
LOAD_SECONDS = 240.0
BUCKET_BYTES = 256 * 1024  # of a model of a few megabytes: many buckets, and tensors of one layer in different ones


class RolloutServer:
    """`python -m mmr1_rollout_server` on free ports. The log is in `folder`."""

    def __init__(self, folder: Path, server_id: str = "rollout-0", **options: Any) -> None:
        self.server_id = server_id
        self.port, self.metrics_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / f"{server_id}.log"
        config = folder / f"{server_id}.yaml"
        config.write_text(yaml.safe_dump(options))
        command = [sys.executable, "-m", "mmr1_rollout_server", "--config", str(config), "--server-id", server_id]
        command += ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        self.channel = grpc.insecure_channel(self.address)

    def health(self, service: str) -> str:
        stub = health_pb2_grpc.HealthStub(self.channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def wait_healthy(self, service: str, seconds: float = LOAD_SECONDS) -> None:
        end = time.monotonic() + seconds
        while self.health(service) != "SERVING":
            assert self.process.poll() is None, f"exit code {self.process.returncode}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"not up in {seconds} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def terminate(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns the exit code, and asserts that no process of its own is left."""
        if self.process.poll() is not None:
            return self.process.returncode
        children = self.children()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, f"left behind: {alive}"
        return code


@dataclass
class Sender:
    """Rank 0 of a transfer group: what a learner does during an update, one flat broadcast per bucket."""

    world_size: int = 2
    prefix: str = "group-0"

    def __post_init__(self) -> None:
        self.port = free_port()
        self.limit = timedelta(seconds=60)
        self.store = TCPStore("127.0.0.1", self.port, self.world_size, True, self.limit, wait_for_workers=False)
        self.group: Any = None

    def join(self) -> None:
        with contextlib.suppress(DistStoreError):  # nobody came: the server refused
            self.group = ProcessGroupGloo(PrefixStore(self.prefix, self.store), 0, self.world_size, self.limit)

    def send(self, weights: dict[str, torch.Tensor], specs: list[TensorSpec], num_buckets: int | None = None) -> None:
        """Broadcast the manifest, or only its first `num_buckets` buckets."""
        for bucket in list(buckets(specs, BUCKET_BYTES))[:num_buckets]:
            flat = torch.cat([weights[spec.name].detach().contiguous().view(-1).view(torch.uint8) for spec in bucket])
            options = BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self.group.broadcast([flat], options).wait()

    def group_for(self, specs: list[TensorSpec]) -> WeightGroup:
        return WeightGroup("gloo", "127.0.0.1", self.port, self.prefix, self.world_size, tuple(specs), BUCKET_BYTES)


class PlayedLearner:
    """A learner of one incarnation that updates one server with any model's weights."""

    def __init__(self, server: RolloutServer, run: str, incarnation: int) -> None:
        self.client = RolloutClient(server.address, run, incarnation)
        self.incarnation = incarnation
        self.sender: Sender | None = None

    def init(self, specs: list[TensorSpec], deadline: float = 60.0) -> None:
        """Form a new group."""
        self.sender = Sender(prefix=f"group-{self.incarnation}-{time.monotonic_ns()}")
        joining = threading.Thread(target=self.sender.join, daemon=True)  # a refused Init leaves it waiting
        joining.start()
        self.client.init_weight_transfer(self.sender.group_for(specs), 1, deadline)
        joining.join()

    def broadcast(self, weights: dict[str, torch.Tensor], specs: list[TensorSpec], number: int) -> dict[str, int]:
        """Start and Update; returns the server's fingerprints."""
        assert self.sender is not None
        version = PolicyVersion(self.incarnation, number)
        self.client.start_weight_update(version, 60.0)
        sending = threading.Thread(target=self.sender.send, args=(weights, specs))
        sending.start()
        received = self.client.update_weights(version, 60.0)
        sending.join()
        return received

    def update(self, model: Any, number: int, *, resume: bool = True) -> PolicyVersion:
        """A full update to `model`'s weights, proved by fingerprints."""
        weights, specs = manifest(model)
        if self.sender is None:
            self.init(specs)
        received = self.broadcast(weights, specs, number)
        expected = {
            name: fingerprint(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
            for name, tensor in weights.items()
        }
        assert received == expected
        version = PolicyVersion(self.incarnation, number)
        self.client.finish_weight_update(version, 60.0)
        if resume:
            self.client.resume(version)
        return version


def manifest(model: Any) -> tuple[dict[str, torch.Tensor], list[TensorSpec]]:
    weights = dict(model.named_parameters())
    return weights, [
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in weights.items()
    ]


def die_in_broadcast(address: str, run: str, incarnation: int, number: int, model_folder: str) -> None:
    """The main function of a learner that ends in the middle of its broadcast, as a killed one does."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32)
    weights, specs = manifest(model)
    sender = Sender(prefix=f"dying-{incarnation}")
    client = RolloutClient(address, run, incarnation)
    joining = threading.Thread(target=sender.join)
    joining.start()
    client.init_weight_transfer(sender.group_for(specs), 1, 60.0)
    joining.join()
    version = PolicyVersion(incarnation, number)
    client.start_weight_update(version, 60.0)
    threading.Thread(target=client.update_weights, args=(version, 60.0), daemon=True).start()
    time.sleep(0.5)
    sender.send(weights, specs, num_buckets=2)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_in_broadcast(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
