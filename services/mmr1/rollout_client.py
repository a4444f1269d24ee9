"""The learner's end of RolloutService: one method a verb, nouns in and nouns out, a deadline on each.

Used for weight updates, the parity gate and evaluation. It retries nothing: a failed verb is a fact that its caller
must act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from mmr1.errors import WeightUpdateError
from mmr1.records import SCHEMA_VERSION, AdapterSpec, Group, PolicyVersion, Prompt, TensorSpec
from mmr1.rollout_access import RolloutAccess
from mmr1.wire import (
    SchemaVersionError,
    check_schema,
    group_from_message,
    prompt_to_message,
    version_from_message,
    version_to_message,
)
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceStub

# A large model is read from disk, and its graphs are captured. Who starts a server and who waits for it agree on this.
LOAD_SECONDS = 1800.0
# From SIGTERM to the end: what runs is finished or given back, then the engine's processes take themselves apart. A
# server that is killed before has died: each prompt that it holds counts that.
STOP_SECONDS = 60.0

_MAX_MESSAGE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class ServerStatus:
    server_id: str
    state: str
    version: PolicyVersion
    num_running_prompts: int
    num_generated_tokens: int
    model: str
    dtype: str
    package_versions: dict[str, str]
    detail: str
    preprocessing: dict[str, str]
    devices: tuple[str, ...]  # where the weights are: a GPU's own number or "cpu", one for each of the engine's workers


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """A collective that is about to be formed: where its members meet, and what will be sent in which order."""

    transport: str
    master_address: str
    master_port: int
    store_prefix: str
    world_size: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: int
    adapter: AdapterSpec | None = None


class RolloutClient:
    """One rollout server. Raises grpc.RpcError for what the server refuses or does not answer in time.

    `access` is the token and the certificates that the server asks for; it is open by default.
    """

    def __init__(self, address: str, run: str, incarnation: int, access: RolloutAccess | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ]
        self.address = address
        self._access = access or RolloutAccess()
        self._channel = self._access.channel(address, options)
        self._stub = RolloutServiceStub(self._channel)
        self._writer = pb.Writer(schema_version=SCHEMA_VERSION, run=run, incarnation=incarnation)

    def close(self) -> None:
        self._channel.close()

    def status(self, timeout: float = 10.0) -> ServerStatus:
        """What the server is and does. Asked before anything else, so it alone names what access lacks.

        Raises:
            SchemaVersionError: it refuses our schema version, or we refuse its.
            ConfigurationError: the server turns us away, or one side speaks TLS and the other does not.
        """
        try:
            reply = self._stub.GetStatus(pb.GetStatusRequest(schema_version=SCHEMA_VERSION), timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # GetStatus is refused for nothing else
                raise SchemaVersionError(f"rollout server at {self.address}: {error.details()}") from None
            if refusal := self._access.refusal(self.address, error):
                raise refusal from None
            raise
        check_schema(reply.schema_version, f"rollout server at {self.address}")
        return ServerStatus(
            server_id=reply.server_id,
            state=pb.ServerState.Name(reply.state).removeprefix("SERVER_STATE_").lower(),
            version=version_from_message(reply.version),
            num_running_prompts=reply.num_running_prompts,
            num_generated_tokens=reply.num_generated_tokens,
            model=reply.model,
            dtype=reply.dtype,
            package_versions=dict(reply.package_versions),
            detail=reply.detail,
            preprocessing=dict(reply.preprocessing),
            devices=tuple(reply.devices),
        )

    def generate(self, prompt: Prompt, *, timeout: float, probe: bool = False) -> Group:
        """Sample one prompt outside the stream. `probe` is answered even while admission is closed."""
        request = pb.GenerateRequest(schema_version=SCHEMA_VERSION, prompt=prompt_to_message(prompt), probe=probe)
        return group_from_message(self._stub.Generate(request, timeout=timeout).group)

    def generate_many(
        self, prompts: Sequence[Prompt], *, timeout: float, probe: bool = False, concurrency: int = 32
    ) -> list[Group]:
        """Sample many prompts, at most `concurrency` at once, and return them in order."""
        running: list[grpc.Future] = []
        groups: list[Group] = []
        for prompt in prompts:
            if len(running) == concurrency:
                groups.append(group_from_message(running.pop(0).result().group))
            request = pb.GenerateRequest(schema_version=SCHEMA_VERSION, prompt=prompt_to_message(prompt), probe=probe)
            running.append(self._stub.Generate.future(request, timeout=timeout))
        return groups + [group_from_message(future.result().group) for future in running]

    def pause(self, deadline_seconds: float) -> float:
        """Close admission and wait until nothing runs. Returns the seconds waited."""
        request = pb.PauseRequest(writer=self._writer, deadline_seconds=deadline_seconds)
        return float(self._stub.Pause(request, timeout=deadline_seconds + 5).waited_seconds)

    def resume(self, version: PolicyVersion, timeout: float = 30.0) -> None:
        """Commit: the server holds `version` and opens admission under it."""
        self._stub.Resume(pb.ResumeRequest(writer=self._writer, version=version_to_message(version)), timeout=timeout)

    def init_weight_transfer(self, group: WeightGroup, rank: int, deadline_seconds: float) -> None:
        request = pb.InitWeightTransferRequest(
            writer=self._writer,
            transport=group.transport,
            master_address=group.master_address,
            master_port=group.master_port,
            store_prefix=group.store_prefix,
            rank=rank,
            world_size=group.world_size,
            tensors=_specs(group.tensors),
            bucket_bytes=group.bucket_bytes,
            deadline_seconds=deadline_seconds,
            adapter=_adapter(group.adapter),
        )
        self._stub.InitWeightTransfer(request, timeout=deadline_seconds + 5)

    def start_weight_update(
        self, version: PolicyVersion, deadline_seconds: float, *, adapter_only: bool = False
    ) -> float:
        """Close admission and wait until nothing runs. Returns the seconds waited."""
        request = pb.StartWeightUpdateRequest(
            writer=self._writer, version=version_to_message(version), deadline_seconds=deadline_seconds
        )
        verb = self._stub.StartAdapterUpdate if adapter_only else self._stub.StartWeightUpdate
        return float(verb(request, timeout=deadline_seconds + 5).waited_seconds)

    def update_weights(self, version: PolicyVersion, deadline_seconds: float) -> dict[str, int]:
        """Receive every bucket of the broadcast. Returns the fingerprint of each received tensor by name."""
        request = pb.UpdateWeightsRequest(
            writer=self._writer, version=version_to_message(version), deadline_seconds=deadline_seconds
        )
        reply = self._stub.UpdateWeights(request, timeout=deadline_seconds + 5)
        return {fingerprint.name: fingerprint.digest for fingerprint in reply.fingerprints}

    def finish_weight_update(self, version: PolicyVersion, deadline_seconds: float) -> None:
        """Finalise what arrived and drop every cache.

        Raises:
            WeightUpdateError: a parameter of the engine was not written.
        """
        request = pb.FinishWeightUpdateRequest(
            writer=self._writer, version=version_to_message(version), deadline_seconds=deadline_seconds
        )
        reply = self._stub.FinishWeightUpdate(request, timeout=deadline_seconds + 5)
        if reply.num_parameters_written != reply.num_parameters:
            raise WeightUpdateError(
                f"{self.address} wrote {reply.num_parameters_written} of its {reply.num_parameters} parameters"
            )


def _specs(tensors: Sequence[TensorSpec]) -> list[pb.TensorSpec]:
    return [pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in tensors]


def _adapter(adapter: AdapterSpec | None) -> pb.AdapterSpec | None:
    if adapter is None:
        return None
    return pb.AdapterSpec(rank=adapter.rank, alpha=adapter.alpha, tensors=_specs(adapter.tensors))
