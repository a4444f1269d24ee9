"""Do sampler and learner compute the same model? Asked before the first step, after each resume and each update.

The learner scores what a rollout server sampled and compares log-probabilities token by token. That sees what no
checksum of weights can: a stale packed copy, a stale cache, another preprocessing. A planted perturbation must be seen
too, or the comparison proves nothing and training does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError, WeightUpdateError
from mmr1.families import FAMILIES
from mmr1.images import ImageStore
from mmr1.preprocessing import Fingerprint, compare, fingerprint
from mmr1.records import Group
from mmr1.rollout_client import RolloutClient
from mmr1_learner.adapters import is_adapter
from mmr1_learner.model import Policy, PromptEncoder
from mmr1_learner.published import Published
from mmr1_learner.rows import Completion, EncodedPrompt, Row, pack
from mmr1_learner.whole import shape_of

# Large enough to move log-probabilities well past any bound for the dtype, small enough to be a plausible fault.
_PERTURBATION = 1.5
_PLANTED_ABOVE = 10.0  # times what the two engines differ by: then wrong adapters stand out, also within the bound
_NARROWEST = 0.2  # of the bound
_MOST_GROUPS_AT_ONCE = 8  # of one prompt: families whose completions get a row each have its images in all of them


class ParityError(ConfigurationError):
    """Sampler and learner disagree: training would learn from another model's samples."""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """|delta log p| over completion tokens, in nats.

    `mismatch_kl` estimates KL(sampler || learner) from the sampler's tokens by E[r - 1 - log r], r the learner's
    probability over the sampler's (Schulman, "Approximating KL divergence", 2020, estimator k3).
    """

    max_abs_dlogp: float
    mean_abs_dlogp: float
    num_tokens: int
    mismatch_kl: float


class Scorer:
    """The learner's own log-probabilities of groups that a server sampled."""

    def __init__(
        self, config: RunConfig, policy: Policy | Published, encoder: PromptEncoder, device: torch.device
    ) -> None:
        self._config = config
        self._policy = policy
        self._encoder = encoder
        self._device = device
        self._store = ImageStore(config.resolved_image_root)
        self._last: tuple[object, EncodedPrompt] | None = None  # a probe asks the same prompt every time

    def compare_preprocessing(self, server_id: str, theirs: Fingerprint) -> None:
        """Before any log-probability: both sides make the same tensors of an image.

        Raises:
            ConfigurationError: they do not; names what differs.
        """
        compare(fingerprint(self._encoder.processor), theirs, server_id)

    def encode(self, group: Group) -> EncodedPrompt:
        """The group's prompt as this side sees it.

        Raises:
            ParityError: the engine saw other tokens: another tokenizer, template or image preprocessing.
        """
        asked = (group.prompt.text, group.prompt.images)
        if self._last is None or self._last[0] != asked:
            images = [self._store.open(image) for image in group.prompt.images]
            self._last = (asked, self._encoder.encode(group.prompt.text, images))
        prompt = self._last[1]
        if prompt.token_ids != group.prompt_token_ids:
            raise ParityError(
                f"prompt {group.prompt.id}: {group.server_id} saw {len(group.prompt_token_ids)} tokens, the learner "
                f"{len(prompt.token_ids)}; both must load the same model folder with the same min_pixels and max_pixels"
            )
        return prompt

    def compare(self, groups: Sequence[Group]) -> ParityReport:
        """Score every completion of `groups` and compare with what the server reported. Raises what `encode` does."""
        (found,) = self.compare_each([groups])
        if isinstance(found, ParityError):
            raise found
        return found

    def compare_each(self, answers: Sequence[Sequence[Group]]) -> list[ParityReport | ParityError]:
        """The same for what each of several servers has sampled; an error stands for what is refused.

        Short answers to the same prompt are scored in one forward: beside a step, whose kernels the same process
        launches, one takes as long as a server more.
        """
        tallies, refused = [_Tally() for _ in answers], dict[int, ParityError]()
        alike: dict[object, list[_Asked]] = {}
        for index, groups in enumerate(answers):
            try:
                asked = [_Asked(tallies[index], group, self.encode(group)) for group in groups]
            except ParityError as error:
                refused[index] = error
                continue
            for one in asked:
                alike.setdefault(one.question, []).append(one)
        with torch.no_grad(), scoring(self._policy):
            for same in alike.values():
                for part in _parts(same):
                    self._score(part)
        return [refused.get(index) or tally.report() for index, tally in enumerate(tallies)]

    def _score(self, asked: Sequence[_Asked]) -> None:
        """Answers to one question."""
        rollouts = [(one.tally, rollout) for one in asked for rollout in one.group.rollouts if rollout.token_ids]
        if not rollouts:
            return
        completions = tuple(Completion(rollout.token_ids, rollout.logprobs, 0.0, 0.0) for _, rollout in rollouts)
        sampling = asked[0].group.prompt.sampling
        row = Row(asked[0].prompt, completions, sampling.temperature, sampling.forbidden_token_ids)
        batch = pack([row], self._encoder.image_token_id, self._encoder.pad_token_id, sizes=self._encoder.sizes)
        batch = batch.to(self._device, self._policy.hf.dtype)
        ratios = self._policy(batch).logprobs - batch.rollout_logprobs
        lengths = [len(rollout.token_ids) for _, rollout in rollouts]
        for (tally, _), ratio in zip(rollouts, ratios.cpu().split(lengths), strict=True):
            tally.add(ratio)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A group that a server has sampled, and where what is found of it is summed up."""

    tally: _Tally
    group: Group
    prompt: EncodedPrompt

    @property
    def question(self) -> object:
        asked = self.group.prompt
        return asked.text, asked.images, asked.sampling.temperature, asked.sampling.forbidden_token_ids

    @property
    def num_tokens(self) -> int:
        return sum(len(rollout.token_ids) for rollout in self.group.rollouts)


def _parts(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Forwards: completions are together no longer than their prompt, unless a group's own are."""
    part: list[_Asked] = []
    bound = len(asked[0].prompt.token_ids)
    for one in asked:
        together = sum(other.num_tokens for other in part) + one.num_tokens
        if part and (len(part) == _MOST_GROUPS_AT_ONCE or together > bound):
            yield part
            part = []
        part.append(one)
    yield part


class _Tally:
    """Of the tokens that one server sampled."""

    def __init__(self) -> None:
        self._total, self._worst, self._count, self._divergence = 0.0, 0.0, 0, 0.0

    def add(self, ratio: torch.Tensor) -> None:
        """`ratio` is the learner's log-probability less the sampler's, of each token of a completion."""
        gap = ratio.abs()
        self._divergence += float((torch.expm1(ratio) - ratio).sum())
        self._total += float(gap.sum())
        self._worst = max(self._worst, float(gap.max()))
        self._count += len(gap)

    def report(self) -> ParityReport:
        count = max(1, self._count)
        return ParityReport(self._worst, self._total / count, self._count, self._divergence / count)


@contextmanager
def scoring(policy: Policy | Published) -> Iterator[None]:
    """Out of training mode, unless both are alike: a step that is computed beside would see it."""
    if isinstance(policy, Published) and policy.scores_beside:
        yield
        return
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)


def narrowed(bound: float, gap: float) -> float:
    """A bound for this model: ten times what its two engines differ by, between a fifth of `bound` and `bound`.

    In bfloat16 that gap depends on the model: measured 6e-4 nats for the demo's small one and 4e-2 for random weights
    at the shape of 3B, where a planted change makes 2e-2 and 6e-1. No single bound would see both.
    """
    return min(bound, max(_NARROWEST * bound, _PLANTED_ABOVE * gap))


def gate(
    scorer: Scorer, policy: Policy | Published, groups: Sequence[Group], bound: float, *, narrow: bool = False
) -> ParityReport:
    """The parity gate.

    Args:
        narrow: a planted change must be seen by the bound that `narrowed` makes of this one.

    Raises:
        ParityError: mean |delta log p| is above `bound`, or a planted perturbation of either tower goes unseen.
    """
    report = scorer.compare(groups)
    if not report.num_tokens:
        raise ParityError("parity gate: the rollout server sampled no token; look at what its log says of the engine")
    if not report.mean_abs_dlogp <= bound:
        raise ParityError(
            f"parity gate: mean |delta log p| {report.mean_abs_dlogp:.2e} (max {report.max_abs_dlogp:.2e}) over "
            f"{report.num_tokens} tokens is above {bound:.0e}: the rollout server and the learner do not compute the "
            "same model; load the same checkpoint and dtype on both sides"
        )
    if narrow:
        bound = narrowed(bound, report.mean_abs_dlogp)
    for tower in towers(policy):
        with perturbed(policy, tower) as name:
            seen = scorer.compare(groups).mean_abs_dlogp
        if seen <= bound:
            raise ParityError(
                f"parity gate: a planted change of {name} moves log-probabilities by {seen:.2e}, within the bound "
                f"{bound:.0e}: the gate could not see a real fault; lower parity_bound or raise parity_prompts"
            )
    return report


def gate_of(
    config: RunConfig, scorer: Scorer, policy: Policy | Published, groups: Sequence[Group]
) -> tuple[ParityReport, float]:
    """The parity gate of a run, and the bound of its probes from here on. Raises what `gate` does."""
    bound, narrow = config.bound(config.dtype), config.parity_bound is None and config.dtype == "bfloat16"
    report = gate(scorer, policy, groups, bound, narrow=narrow)
    return report, narrowed(bound, report.mean_abs_dlogp) if narrow else bound


def see_wrong_adapters(
    clients: Sequence[RolloutClient], probe: Callable[[RolloutClient], float], agreed: Sequence[float]
) -> None:
    """The servers have planted adapters and the learner its own: a probe that sees no difference proves nothing.

    A policy that has become sure of its answers moves less than the bound under planted adapters; it must then still
    move far more than the two engines differ by.

    Args:
        agreed: what `probe` returned for each server while the learner had the planted adapters too.

    Raises:
        ParityError: `probe` neither raises WeightUpdateError nor returns far more than that.
    """
    for client, engines in zip(clients, agreed, strict=True):
        try:
            seen = probe(client)
        except WeightUpdateError:
            continue
        if seen > _PLANTED_ABOVE * engines:
            continue
        raise ParityError(
            f"lora_updates adapter: {client.address} samples with planted adapters, and its log-probabilities are only "
            f"{seen:.2e} from the learner's, within the bound: wrong adapters could not be seen; lower parity_bound"
        )


def towers(policy: Policy | Published) -> tuple[str, ...]:
    """The parts of the model that a fault could be in. Of a family that is not known: each that is made of blocks."""
    family = FAMILIES.get(policy.hf.config.model_type)
    if family is not None:
        return family.vision_tower, family.language_model
    parts = policy.hf.model.named_children()
    return tuple(name for name, part in parts if any(isinstance(m, torch.nn.ModuleList) for m in part.modules()))


@contextmanager
def perturbed(policy: Policy | Published, tower: str) -> Iterator[str]:
    """Scale the last matrix of one tower's first block for a while; yields its name, restores it exactly.

    Found by its place, because every family has its own names: that matrix leads out of the block's MLP in all of them.
    """
    prefix = f"model.{tower}"
    name, block = next(
        (f"{prefix}.{name}.0", module[0])
        for name, module in policy.hf.get_submodule(prefix).named_modules()
        if isinstance(module, torch.nn.ModuleList)
    )
    matrices = [
        f"{name}.{part}"
        for part, parameter in block.named_parameters()
        if len(shape_of(parameter)) == 2 and not is_adapter(part)
    ]
    with policy.scaled(matrices[-1], _PERTURBATION):
        yield matrices[-1]
