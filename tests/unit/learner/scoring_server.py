"""A rollout server for tests whose engine is the learner's own scorer: everything but vLLM is real.

It receives weights over the collective, draws tokens at random, and says truly how likely they were under the weights
that it holds, so the parity gate and the probes have something to refuse. Rewards are drawn too.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import redis.asyncio
import torch
from torch.distributed import BroadcastOptions

from mmr1.config import RunConfig
from mmr1.images import ImageStore
from mmr1.preprocessing import fingerprint as preprocessing
from mmr1.records import (
    SCHEMA_VERSION,
    FinishReason,
    Group,
    Outcome,
    PolicyVersion,
    Prompt,
    Rollout,
    Score,
    VersionSpan,
)
from mmr1.streams import PromptConsumer
from mmr1.weight_plan import buckets, fingerprint, tensor_bytes
from mmr1.wire import group_to_message, prompt_from_message, version_from_message
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1_learner.model import PromptEncoder, load_policy
from mmr1_learner.rows import Completion, Row, pack
from tests.unit.learner.test_weights import Server

NAME = "rollout-0"


class ScoringServer(Server):
    """Serves the prompts of the run "test" from the first committed version on, in a thread."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.policy = load_policy(config.model, config).eval()
        self._encoder = PromptEncoder(config.model, self.policy, config)
        self._store = ImageStore(config.resolved_image_root)
        self._one_at_a_time = threading.Lock()  # a tokenizer cannot be used by two threads at once
        self._rng = np.random.default_rng(0)
        self._version = PolicyVersion(0, 0)
        self._serving: threading.Thread | None = None
        super().__init__(config.resolved_redis_url, NAME)

    def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            schema_version=SCHEMA_VERSION,
            server_id=NAME,
            state="SERVER_STATE_ACCEPTS_WEIGHTS",
            preprocessing=preprocessing(self._encoder.processor),
        )

    def InitWeightTransfer(self, request: Any, context: Any) -> pb.InitWeightTransferResponse:
        self._bucket_bytes = request.bucket_bytes
        return super().InitWeightTransfer(request, context)

    def StartWeightUpdate(self, request: Any, context: Any) -> pb.StartWeightUpdateResponse:
        self._version = version_from_message(request.version)
        return super().StartWeightUpdate(request, context)

    def UpdateWeights(self, request: Any, context: Any) -> pb.UpdateWeightsResponse:
        held, found = dict(self.policy.named_tensors()), []
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        for bucket in buckets(self.tensors, self._bucket_bytes):
            sizes = [tensor_bytes(spec) for spec in bucket]
            flat = torch.empty(sum(sizes), dtype=torch.uint8)
            self.group.broadcast([flat], options).wait()
            for spec, data in zip(bucket, torch.split(flat, sizes), strict=True):
                found.append(pb.Fingerprint(name=spec.name, digest=fingerprint(data.numpy().data)))
                held[spec.name].copy_(data.clone().view(torch.float32).view(spec.shape))
        return pb.UpdateWeightsResponse(fingerprints=found)

    def Resume(self, request: Any, context: Any) -> pb.ResumeResponse:
        if self._serving is None:
            self._serving = threading.Thread(target=lambda: asyncio.run(self._serve()))
            self._serving.start()
        return super().Resume(request, context)

    def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        return pb.GenerateResponse(group=group_to_message(self.sample(prompt_from_message(request.prompt))))

    def stop(self) -> None:
        super().stop()
        if self._serving is not None:
            self._serving.join()

    def sample(self, prompt: Prompt) -> Group:
        """Completions of random allowed tokens, with their true log-probabilities."""
        with self._one_at_a_time, torch.no_grad():
            encoded = self._encoder.encode(prompt.text, [self._store.open(image) for image in prompt.images])
            sampling = prompt.sampling
            allowed = [token for token in range(20, 200) if token not in sampling.forbidden_token_ids]
            lengths = self._rng.integers(1, sampling.max_completion_length, prompt.num_generations)
            drawn = [tuple(int(token) for token in self._rng.choice(allowed, length)) for length in lengths]
            completions = tuple(Completion(tokens, (0.0,) * len(tokens), 0.0, 0.0) for tokens in drawn)
            row = Row(encoded, completions, sampling.temperature, sampling.forbidden_token_ids)
            scored = self.policy(pack([row], self._encoder.image_token_id, self._encoder.pad_token_id)).logprobs
        logprobs = torch.split(scored, [len(tokens) for tokens in drawn])
        rollouts = tuple(
            Rollout(
                token_ids=tokens,
                logprobs=tuple(part.tolist()),
                spans=(VersionSpan(self._version, 0, len(tokens)),),
                text="",
                finish_reason=FinishReason.STOP,
            )
            for tokens, part in zip(drawn, logprobs, strict=True)
        )
        return Group(prompt, encoded.token_ids, rollouts, NAME)

    async def _serve(self) -> None:
        async with redis.asyncio.Redis.from_url(self.config.resolved_redis_url) as client:
            consumer = PromptConsumer(client, self.config.run, NAME, claim_idle_seconds=60, max_deliveries=3)
            while not self.released.is_set():
                version = self._version
                await consumer.register(self.address, "serves", version, 60)
                for held in await consumer.take(4, version, self.config.max_off_policy_steps):
                    await consumer.publish(held, self._scored(self.sample(held.prompt)))
                await asyncio.sleep(0.05)

    def _scored(self, group: Group) -> Group:
        rewards = [float(reward) for reward in self._rng.uniform(size=len(group.rollouts))]
        scores = [Score(Outcome.OK, reward, {"counting": reward}) for reward in rewards]
        rollouts = zip(group.rollouts, scores, strict=True)
        return replace(group, rollouts=tuple(replace(rollout, score=score) for rollout, score in rollouts))
