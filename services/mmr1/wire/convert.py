"""Nouns to messages and back, field by field. Knows nothing of streams or servers.

`encode_*`/`decode_*` are what the streams hold; `*_to_message`/`*_from_message` what gRPC carries.
"""

from __future__ import annotations

import json

from mmr1.records import (
    SCHEMA_VERSION,
    FinishReason,
    Group,
    ImageRef,
    Outcome,
    PolicyVersion,
    Prompt,
    PromptId,
    RewardSpec,
    Rollout,
    Sampling,
    Score,
    VersionSpan,
)
from mmr1.wire.schema import check_schema
from mmr1.wire.v1 import records_pb2 as pb

_OUTCOMES = {
    Outcome.OK: pb.OUTCOME_OK,
    Outcome.INVALID_OUTPUT: pb.OUTCOME_INVALID_OUTPUT,
    Outcome.VERIFIER_ERROR: pb.OUTCOME_VERIFIER_ERROR,
    Outcome.TIMEOUT: pb.OUTCOME_TIMEOUT,
}
_FINISH_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
_OUTCOMES_BACK = {message: noun for noun, message in _OUTCOMES.items()}
_FINISH_REASONS_BACK = {message: noun for noun, message in _FINISH_REASONS.items()}


def version_to_message(version: PolicyVersion) -> pb.PolicyVersion:
    return pb.PolicyVersion(incarnation=version.incarnation, number=version.number)


def version_from_message(message: pb.PolicyVersion) -> PolicyVersion:
    return PolicyVersion(message.incarnation, message.number)


def prompt_to_message(prompt: Prompt) -> pb.Prompt:
    return pb.Prompt(
        schema_version=SCHEMA_VERSION,
        id=pb.PromptId(run=prompt.id.run, position=prompt.id.position, attempt=prompt.id.attempt),
        text=prompt.text,
        images=[pb.ImageRef(path=image.path, sha256=image.sha256) for image in prompt.images],
        task=prompt.task,
        problem=prompt.problem,
        solution_json=json.dumps(prompt.solution),
        num_generations=prompt.num_generations,
        sampling=_sampling_to_message(prompt.sampling),
        rewards=[
            pb.RewardSpec(task=spec.task, weight=spec.weight, params_json=json.dumps(spec.params))
            for spec in prompt.rewards
        ],
    )


def prompt_from_message(message: pb.Prompt) -> Prompt:
    """Raises SchemaVersionError when the message is too old or too new."""
    check_schema(message.schema_version, "prompt")
    return Prompt(
        id=PromptId(message.id.run, message.id.position, message.id.attempt),
        text=message.text,
        images=tuple(ImageRef(image.path, image.sha256) for image in message.images),
        task=message.task,
        problem=message.problem,
        solution=json.loads(message.solution_json),
        num_generations=message.num_generations,
        sampling=_sampling_from_message(message.sampling),
        rewards=tuple(RewardSpec(spec.task, spec.weight, json.loads(spec.params_json)) for spec in message.rewards),
    )


def group_to_message(group: Group) -> pb.Group:
    message = pb.Group(
        schema_version=SCHEMA_VERSION,
        prompt=prompt_to_message(group.prompt),
        prompt_token_ids=group.prompt_token_ids,
        server_id=group.server_id,
        generate_seconds=group.generate_seconds,
        score_seconds=group.score_seconds,
    )
    for rollout in group.rollouts:
        _add_rollout(message, rollout)
    return message


def group_from_message(message: pb.Group) -> Group:
    """Raises SchemaVersionError when the message is too old or too new."""
    check_schema(message.schema_version, "group")
    return Group(
        prompt=prompt_from_message(message.prompt),
        prompt_token_ids=tuple(message.prompt_token_ids),
        rollouts=tuple(_rollout_from_message(rollout) for rollout in message.rollouts),
        server_id=message.server_id,
        generate_seconds=message.generate_seconds,
        score_seconds=message.score_seconds,
    )


def encode_prompt(prompt: Prompt) -> bytes:
    return prompt_to_message(prompt).SerializeToString()


def decode_prompt(data: bytes) -> Prompt:
    return prompt_from_message(pb.Prompt.FromString(data))


def encode_group(group: Group) -> bytes:
    return group_to_message(group).SerializeToString()


def decode_group(data: bytes) -> Group:
    return group_from_message(pb.Group.FromString(data))


def _sampling_to_message(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_completion_length=sampling.max_completion_length,
        seed=sampling.seed,
        forbidden_token_ids=sampling.forbidden_token_ids,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def _sampling_from_message(message: pb.Sampling) -> Sampling:
    return Sampling(
        temperature=message.temperature,
        max_completion_length=message.max_completion_length,
        top_p=message.top_p,
        seed=message.seed if message.HasField("seed") else None,
        forbidden_token_ids=tuple(message.forbidden_token_ids),
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
    )


def _add_rollout(message: pb.Group, rollout: Rollout) -> None:
    """Filled where it stands: handed over as a message of its own it would be copied, and it is most of the bytes."""
    added = message.rollouts.add(
        token_ids=rollout.token_ids,
        logprobs=rollout.logprobs,
        text=rollout.text,
        finish_reason=_FINISH_REASONS[rollout.finish_reason],
    )
    for span in rollout.spans:
        added.spans.add(version=version_to_message(span.version), begin=span.begin, end=span.end)
    if rollout.score is not None:
        added.score.CopyFrom(_score_to_message(rollout.score))


def _rollout_from_message(message: pb.Rollout) -> Rollout:
    return Rollout(
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
        spans=tuple(VersionSpan(version_from_message(span.version), span.begin, span.end) for span in message.spans),
        text=message.text,
        finish_reason=_FINISH_REASONS_BACK[message.finish_reason],
        score=_score_from_message(message.score) if message.HasField("score") else None,
    )


def _score_to_message(score: Score) -> pb.Score:
    return pb.Score(
        outcome=_OUTCOMES[score.outcome],
        reward=score.reward,
        components=score.components,
        detail=score.detail,
        parsed_json=json.dumps(score.parsed) if score.parsed else "",
    )


def _score_from_message(message: pb.Score) -> Score:
    return Score(
        outcome=_OUTCOMES_BACK[message.outcome],
        reward=message.reward if message.HasField("reward") else None,
        components=dict(message.components),
        detail=message.detail,
        parsed=json.loads(message.parsed_json) if message.parsed_json else {},
    )
