"""What one optimizer step leaves on record: a line of metrics, and one line for each completion."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmr1.config import RunConfig
from mmr1_learner.completion_details import CompletionDetails
from mmr1_learner.loss import group_advantages
from mmr1_learner.loss.report import QUANTILES, TERMS
from mmr1_learner.plan import StepPlan, step_rewards
from mmr1_learner.source import Collected
from mmr1_learner.token_gaps import Gaps


def step_record(
    config: RunConfig,
    plan: StepPlan,
    collected: Collected,
    report: dict[str, float],
    phases: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The step's line in metrics.jsonl; None where the step had nothing to measure."""
    scores = [rollout.score for group in plan.groups for rollout in group.rollouts if rollout.score is not None]
    rewards = [score.reward for score in scores if score.reward is not None]
    components: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.components.items():
            components.setdefault(name, []).append(value)
    lengths = [len(rollout.token_ids) for group in plan.groups for rollout in group.rollouts]
    return {
        "step": plan.step + 1,
        "num_steps": config.num_steps,
        "time": time.time(),
        "seconds": seconds,
        "reward_mean": statistics.fmean(rewards) if rewards else None,
        "reward_by_task": _reward_by_task(plan),
        "reward_std": statistics.pstdev(rewards) if rewards else None,
        "components": {name: statistics.fmean(values) for name, values in components.items()},
        "temperature": config.temperature_at(plan.step, config.num_steps),
        "lag_mean": statistics.fmean(collected.lags) if collected.lags else None,
        "lag_max": max(collected.lags, default=None),
        "lag_p50": _quantile(collected.lags, 0.5),
        "lag_p90": _quantile(collected.lags, 0.9),
        "completion_length_mean": statistics.fmean(lengths) if lengths else None,
        "tokens_per_second": report.get("num_tokens", 0.0) / seconds if seconds else None,
        "num_groups": len(plan.groups),
        "num_rollouts": sum(len(group.rollouts) for group in plan.groups),
        "outcomes": dict(Counter(score.outcome.value for score in scores)),
        "dropped": dict(collected.dropped),
        "phases": phases,
        **dict.fromkeys(_REPORTED),
        **report,  # whatever the loss reports, also what no name is known of here
    }


_REPORTED = (
    "loss",
    *(f"{term}_loss" for term in TERMS),
    "kl_k1",
    "kl_k3",
    "kl_kimikl",
    "kl_kimifull",
    "entropy",
    "clip_fraction",
    "tis_truncated_fraction",
    "importance_masked_fraction",
    "off_policy_kl",
    "mismatch_kl",
    *(f"{ratio}_{label}" for ratio in ("ratio", "importance") for label in QUANTILES),
    "grad_norm",
    "learning_rate",
)


def completion_records(
    config: RunConfig, plan: StepPlan, lags: Sequence[int], gaps: Gaps, details: CompletionDetails
) -> Iterator[dict[str, Any]]:
    """A line in completions.jsonl for each rollout of the step. `reward` is as scored, `advantage` as trained with.

    Those that `gaps` names have `tokens` and `gaps`.
    """
    groups = zip(plan.groups, lags, step_rewards(plan, config), strict=True)
    for place, (group, lag, rewards) in enumerate(groups):
        advantages = group_advantages(rewards, config.objective) or [None] * len(group.rollouts)
        shown = details.of_prompt(group.prompt)
        for index, rollout in enumerate(group.rollouts):
            score = rollout.score
            yield {
                "step": plan.step + 1,
                "prompt_id": str(group.prompt.id),
                "task": group.prompt.task,
                "problem": group.prompt.problem,
                "prompt": group.prompt.text,
                "images": [image.path for image in group.prompt.images],
                "solution": group.prompt.solution,
                "completion": rollout.text,
                "reward": score.reward if score else None,
                "components": score.components if score else {},
                "outcome": score.outcome.value if score else None,
                "detail": score.detail if score else "",
                "policy_version": str(rollout.oldest_version),
                "policy_lag": lag,
                "finish_reason": rollout.finish_reason.value,
                "advantage": advantages[index],
                "server": group.server_id,
                "parsed": score.parsed if score else {},
                **shown,
                **details.of_rollout(rollout, gaps.get((place, index))),
            }


def _reward_by_task(plan: StepPlan) -> dict[str, float]:
    """The mean reward of each task that has one in this step."""
    rewards: dict[str, list[float]] = {}
    for group in plan.groups:
        scores = [rollout.score for rollout in group.rollouts if rollout.score is not None]
        rewards.setdefault(group.prompt.task, []).extend(s.reward for s in scores if s.reward is not None)
    return {task: statistics.fmean(values) for task, values in sorted(rewards.items()) if values}


def _quantile(values: Sequence[int], share: float) -> int | None:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None
