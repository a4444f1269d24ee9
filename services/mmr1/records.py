"""The nouns: what a run is made of, as frozen dataclasses.

Problem -> Prompt -> Rollout -> Group. (Row and Batch, which hold tensors, belong to the learner.) This file knows
nothing of protobuf, Redis or files; `mmr1.wire` turns these into messages and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

# Bumped when a message changes its meaning. One version older is accepted, anything else is refused.
SCHEMA_VERSION = 1


class PolicyVersion(NamedTuple):
    """A committed state of the policy. Never reused: a new learner gets a new incarnation."""

    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.number}"


class PromptId(NamedTuple):
    """One attempt at one place of the data order."""

    run: str
    position: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.position}/{self.attempt}"

    def next_attempt(self) -> PromptId:
        return self._replace(attempt=self.attempt + 1)


class Outcome(Enum):
    """What became of scoring one sample. Only the first two come with a reward."""

    OK = "ok"
    INVALID_OUTPUT = "invalid_output"
    VERIFIER_ERROR = "verifier_error"
    TIMEOUT = "timeout"

    @property
    def has_reward(self) -> bool:
        return self in (Outcome.OK, Outcome.INVALID_OUTPUT)


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image below a declared root: relative path, and the SHA-256 of the file's bytes (32 bytes)."""

    path: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a dataset. `images` are paths relative to the dataset's image root."""

    position: int
    problem: str
    solution: Any
    images: tuple[str, ...]
    task: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn; the learner applies `temperature` and the forbidden tokens to its own logits too."""

    temperature: float
    max_completion_length: int
    top_p: float = 1.0
    seed: int | None = None
    forbidden_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One of a run's rewards: a task of the reward server, its weight in the sum, and the params it is called with."""

    task: str
    weight: float = 1.0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem, rendered: what a rollout server needs to sample and score it. Holds no token ids and no pixels."""

    id: PromptId
    text: str
    images: tuple[ImageRef, ...]
    task: str
    problem: str
    solution: Any
    num_generations: int
    sampling: Sampling
    rewards: tuple[RewardSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one completion. `reward` is None exactly when the outcome has no reward.

    `parsed` is what each reward, by its name among the components, read out of the response; for people, and bounded.
    """

    outcome: Outcome
    reward: float | None
    components: dict[str, float] = field(default_factory=dict)
    detail: str = ""
    parsed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome.has_reward != (self.reward is not None):
            raise ValueError(f"outcome {self.outcome.value} with reward {self.reward}")


class VersionSpan(NamedTuple):
    """Tokens [begin, end) were sampled under `version`."""

    version: PolicyVersion
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion. `logprobs` are of the distribution that was sampled from, one per token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[VersionSpan, ...]
    text: str
    finish_reason: FinishReason
    score: Score | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} tokens with {len(self.logprobs)} log-probabilities")

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(span.version for span in self.spans)


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt. `prompt_token_ids` are as the engine saw them, image placeholders expanded."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    server_id: str
    generate_seconds: float = 0.0
    score_seconds: float = 0.0

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(rollout.oldest_version for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the policy: its checkpoint name, torch dtype name (float32, bfloat16) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """LoRA adapters that are sent beside the base model's tensors: scaled by alpha / rank, each A before its B."""

    rank: int
    alpha: float
    tensors: tuple[TensorSpec, ...]
