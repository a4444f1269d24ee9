"""The options of the objective: what is optimised, with which terms, from which rewards (docs/objectives.md).

Facts about single options, and what an objective makes of the others' defaults; `options.py` puts all options together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator
from pydantic_settings import NoDecode

from mmr1.records import RewardSpec

# Where an objective's own authors chose other values than the defaults below.
_OBJECTIVE_DEFAULTS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"aggregation": "constant"},
    "dapo": {"aggregation": "token_mean", "clip_high": 0.28, "overlong": "shape", "dynamic_sampling": True},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"aggregation": "token_mean"},
}

# Options whose default is the objective's affair.
OF_OBJECTIVE = frozenset(name for defaults in _OBJECTIVE_DEFAULTS.values() for name in defaults)

OWN_TASK = "task"  # among `rewards`: whatever the row's own task is


class ObjectiveOptions(BaseModel):
    rewards: Annotated[list[str], NoDecode] = Field(
        default_factory=lambda: [OWN_TASK],
        description="NAME[=WEIGHT] ...: tasks of the reward server, summed by weight; `task` is the row's own",
    )
    reward_params: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(
        default_factory=dict, description="what a reward is called with, {NAME: {PARAM: VALUE ...} ...}"
    )
    reward_scale: float = Field(1.0, gt=0, description="the weighted sum of rewards is multiplied by this")
    objective: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "kimi"] = Field(
        "grpo", description="what is optimised; some change the defaults of other options, which say so"
    )
    kimi_tau: float = Field(0.1, ge=0, description="objective kimi: of the squared log-ratio to the sampler")
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = Field(
        "sequence_mean",
        description="tokens to one number: mean over a completion, then over completions; mean over all tokens; or sum "
        "over max_completion_length, then mean. Default of dapo and cispo: token_mean, of dr_grpo: constant",
    )
    kl: Annotated[list[Literal["k1", "k3", "kimikl", "kimifull"]], NoDecode] = Field(
        default=["k3"], description="which divergences from the reference enter the loss; empty = none"
    )
    k1_weight: float = Field(0.1, ge=0, description="of the k1 term in the loss")
    k1_threshold: float = Field(10.0, gt=0, description="k1 is clipped to plus and minus this many nats")
    k3_weight: float = Field(0.2, ge=0, description="of the k3 term in the loss")
    k3_adaptive_factor: float = Field(
        0.5, ge=0, description="pulls a response less the less sure the policy is of it; 0 = plain k3"
    )
    kimikl_weight: float = Field(0.1, ge=0, description="of the kimikl term in the loss")
    kimikl_task_id: str | None = Field(
        None, min_length=1, description="the only task whose samples have a kimikl term; default all"
    )
    kimifull_weight: float = Field(0.05, ge=0, description="of the kimifull term in the loss")
    entropy_reg: bool = Field(False, description="the policy's entropy enters the loss")
    entropy_weight: float = Field(0.01, description="of the entropy: above 0 raises it, below 0 sharpens the policy")
    clip_low: float = Field(
        0.2, gt=0, lt=1, description="the ratio is clipped below at 1 - clip_low. Default of gspo: 0.0003"
    )
    clip_high: float = Field(
        0.2, gt=0, description="the ratio is clipped above at 1 + clip_high. Default of dapo: 0.28, of gspo: 0.0004"
    )
    importance_correction: Literal["none", "tis", "icepop", "sequence_mask"] = Field(
        "tis", description="of the mismatch between sampler and learner; objective kimi has its own"
    )
    tis_bound: float = Field(2.0, gt=1, description="tis: truncation of the importance weight")
    icepop_low: float = Field(0.5, ge=0, le=1, description="icepop: a token of lower importance weight is masked")
    icepop_high: float = Field(2.0, ge=1, description="icepop: a token of higher importance weight is masked")
    sequence_mask_bound: float = Field(
        1.0, gt=0, description="sequence_mask: mean |log importance weight| above which a completion is masked"
    )
    orphan_groups: Literal["reuse", "refeed"] = Field(
        "reuse",
        description="groups that versions lost in a crash have sampled: trained with the importance ratio of their "
        "recorded log-probabilities (reuse), or dropped and sampled anew (refeed)",
    )
    overlong: Literal["none", "mask", "shape"] = Field(
        "none",
        description="completions cut off at max_completion_length take no part (mask), or the last overlong_buffer "
        "tokens cost reward, down to -1 (shape). Default of dapo: shape",
    )
    overlong_buffer: int | None = Field(
        None, gt=0, description="shape: tokens; default a fifth of max_completion_length"
    )
    dynamic_sampling: bool = Field(
        False,
        description="a group whose rewards are all equal is dropped and another problem sampled in its place. "
        "Default of dapo: true",
    )
    dynamic_sampling_limit: int = Field(
        10, gt=0, description="groups sampled anew in one step at most, as a multiple of the step's groups"
    )
    num_updates_per_batch: int = Field(
        1, ge=1, description="optimizer steps on one batch; the clip acts from the second on"
    )
    reward_shuffle: bool = Field(
        False, description="a control: rewards are permuted within the batch, so nothing can be learned"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _defaults_of_objective(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """What a user gives wins, and only that counts as set: another objective has its own defaults again."""
        if not isinstance(given, dict):
            return validate(given)
        defaults = _OBJECTIVE_DEFAULTS.get(str(given.get("objective")), {})
        options = validate({**defaults, **given})
        options.model_fields_set.difference_update(defaults.keys() - given.keys())
        return options

    @property
    def reward_specs(self) -> tuple[RewardSpec, ...]:
        """The rewards as they are named, `task` among them."""
        specs = []
        for entry in self.rewards:
            name, _, weight = entry.partition("=")
            specs.append(RewardSpec(name, float(weight) if weight else 1.0, self.reward_params.get(name, {})))
        return tuple(specs)

    def reward_specs_for(self, task: str) -> tuple[RewardSpec, ...]:
        """The rewards of a row of this task. One that is named twice, by its name and as `task`, has both weights."""
        weights: dict[str, float] = {}
        for spec in self.reward_specs:
            name = task if spec.task == OWN_TASK else spec.task
            weights[name] = weights.get(name, 0.0) + spec.weight
        return tuple(RewardSpec(name, weight, self.reward_params.get(name, {})) for name, weight in weights.items())

    def has_regularisation(self, task: str) -> bool:
        """Whether a sample of this task, without an advantage, still has something to learn from in the loss.

        That is a divergence that reaches the task, or entropy, with a weight.
        """
        weights = {"k1": self.k1_weight, "k3": self.k3_weight, "kimifull": self.kimifull_weight}
        weights["kimikl"] = self.kimikl_weight if self.kimikl_task_id in (None, task) else 0.0
        return any(weights[name] for name in self.kl) or (self.entropy_reg and self.entropy_weight != 0)
