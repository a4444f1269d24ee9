"""Rank 0's end of the queue: keeps prompts fed, and collects the groups of one optimizer step.

Back-pressure lives here and nowhere else: at most (max_off_policy_steps + 1) x prompts_per_step groups are fed and not
yet applied. It decides which groups a step is made of; it does not know what a step does with them.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Group, PolicyVersion, PromptId
from mmr1.streams import Ledger, RunQueue
from mmr1_learner.group_rewards import reward_of, training_rewards
from mmr1_learner.loss import group_advantages, has_variance
from mmr1_learner.prompts import PromptFactory

log = structlog.get_logger()

# Between looks into an empty queue: a sampler on the same cores has better use for them.
_SHORTEST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.05
_MAX_FRUITLESS_STEPS = 3

# Reasons for which a group is dropped, beside those that are named once.
NO_VARIANCE = "no_variance"
OVERLONG = "overlong"
NOT_FINITE = "not_finite"
STALE = "stale"
ORPHAN = "orphan"
UNSCORED = "unscored"
IMAGE = "image"


@dataclass
class Collected:
    """The groups of one step, and what became of the others."""

    groups: list[Group] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_refilled: int = 0  # of the dropped, those whose places were fed again
    num_resampled: int = 0  # of those, what dynamic_sampling_limit counts: all but the stale and the orphans
    num_dead: int = 0
    wait_seconds: float = 0.0

    @property
    def num_closed(self) -> int:
        """Places of the step that are decided. One that was fed again does not count."""
        return len(self.groups) + self.num_dead + self.dropped.total() - self.num_refilled


def _complaint(group: Group) -> str:
    """What the reward server said of the first rollout that it could not score."""
    scores = [rollout.score for rollout in group.rollouts if rollout.score is not None]
    return next((score.detail for score in scores if score.reward is None), "")


def policy_lag(group: Group, version: PolicyVersion) -> int:
    """Distance in steps between the learner's version and the oldest that sampled this group.

    A group of an earlier incarnation may carry a number that this learner has not reached again: still a distance.
    """
    return abs(version.number - group.oldest_version.number)


def is_orphan(group: Group, version: PolicyVersion, lineage: Mapping[int, int]) -> bool:
    """Whether a version that never led to the learner's parameters sampled part of this group.

    After a crash the parameters are those of a checkpoint; what an earlier incarnation made of them since is lost.
    `lineage` has the last number of each incarnation on the way. One that left no checkpoint began with what the one
    before it on the way had left, or with the model's own weights: number 0.
    """

    def kept(incarnation: int) -> int:
        return max((number for earlier, number in lineage.items() if earlier <= incarnation), default=0)

    versions = {span.version for rollout in group.rollouts for span in rollout.spans}
    others = (sampled for sampled in versions if sampled.incarnation != version.incarnation)
    return any(sampled.number > kept(sampled.incarnation) for sampled in others)


class GroupSource:
    """Feeds and collects for one learner. `lineage`: see `is_orphan`."""

    def __init__(
        self,
        config: RunConfig,
        queue: RunQueue,
        prompts: PromptFactory,
        next_position: int = 0,
        lineage: Mapping[int, int] | None = None,
    ) -> None:
        self._config = config
        self._queue = queue
        self._prompts = prompts
        self._end = config.num_steps * config.prompts_per_step
        self._resampling_limit = (
            config.dynamic_sampling_limit * config.prompts_per_step if config.dynamic_sampling else 0
        )
        self.next_position = next_position
        self._seen_dead = sum(queue.ledger().dead.values())
        self._fruitless: Counter[str] = Counter()  # steps in a row that ended without a group, by reason
        self.last_unscored = ""  # what the reward server said of the last group that could not be scored
        self._store = ImageStore(config.resolved_image_root)
        self._threads = ThreadPoolExecutor(config.learner_threads, thread_name_prefix="images")
        self._lineage = lineage or {}
        self._orphans: deque[Group] = deque()  # to be fed again: still ready in Redis until there is room
        # Read before their step, and what is wrong with their images.
        self._early: deque[tuple[Group, Future[str | None]]] = deque()

    def prompt_id(self, position: int, attempt: int = 0) -> PromptId:
        return PromptId(self._config.run, position, attempt)

    def feed(self, collected: Collected | None = None) -> Ledger:
        """Top the queue up to the bound. Returns the accounts as they were before; decisions rest on them alone.

        Orphans come first, for they are earlier in the data order. A crash may have left many steps' worth of them, so
        they are not all fed at once: what is sampled long before its step is stale when that step comes.
        """
        ledger = self._queue.ledger()
        bound = (self._config.max_off_policy_steps + 1) * self._config.prompts_per_step
        for _ in range(max(0, bound - (ledger.unapplied - len(self._orphans)))):
            if self._orphans:
                self._drop(self._orphans.popleft(), ORPHAN, collected or Collected(), refill=True)
            elif self.next_position < self._end:
                self._queue.feed(self._prompts.training(self.prompt_id(self.next_position)))
                self.next_position += 1
        return ledger

    def collect(self, version: PolicyVersion, tick: Callable[[], None]) -> Collected:
        """Wait for one step's groups. `tick` is called while waiting: late servers, stop requests.

        A step closes when the groups it applies, those dropped for good and those dead make up `prompts_per_step`.

        Raises:
            ConfigurationError: a group is lost, or all that are sampled are useless.
            UnreachableImageError: where images are kept does not answer.
        """
        collected = Collected()
        started = time.monotonic()
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            position = self.next_position
            ledger = self.feed(collected)
            self._note_dead(ledger, collected)
            wanted = self._config.prompts_per_step - collected.num_closed
            if wanted <= 0:
                break
            if position >= self._end and ledger.unapplied == len(collected.groups):
                # Places that an earlier life closed and whose step no checkpoint contains: others take their part. A
                # place that was lost is none of these.
                ledger.require_balance(self._config.run)
                self._end += wanted
                continue
            self._read(wanted)
            groups = [self._early.popleft() for _ in range(min(wanted, len(self._early)))]
            for group, fault in groups:
                self._sort(group, fault, version, collected)
            pause = _SHORTEST_PAUSE_SECONDS if groups else min(_LONGEST_PAUSE_SECONDS, pause * 1.5)
            if not groups:
                tick()
                time.sleep(pause)
        self._refuse_nothing(collected)
        self._queue.mark_applied([group.prompt.id for group in collected.groups])
        collected.wait_seconds = time.monotonic() - started
        return collected

    def look_ahead(self, version: PolicyVersion) -> list[Group]:
        """What `collect` would return under `version` if it were called now; empty when it would have to wait.

        They are read, and stay what they are: ready in Redis, until `collect` takes them.

        Raises what `collect` does of images.
        """
        self._read(self._config.prompts_per_step)
        first = [self._early[index] for index in range(min(self._config.prompts_per_step, len(self._early)))]
        usable = [
            group for group, fault in first if self._fits(group, version) and not self._fault(group, fault.result())
        ]
        return usable if len(usable) == self._config.prompts_per_step else []

    def _read(self, wanted: int) -> None:
        """Until there are as many as `wanted`, or no more; their images are looked at meanwhile."""
        for group in self._queue.read(wanted - len(self._early)) if wanted > len(self._early) else ():
            self._early.append((group, self._threads.submit(self._image_fault, group)))

    def _fits(self, group: Group, version: PolicyVersion) -> bool:
        fresh = policy_lag(group, version) <= self._config.max_off_policy_steps
        return fresh and not is_orphan(group, version, self._lineage)

    def _note_dead(self, ledger: Ledger, collected: Collected) -> None:
        dead = sum(ledger.dead.values())
        collected.num_dead += dead - self._seen_dead
        self._seen_dead = dead

    def _sort(self, group: Group, fault: Future[str | None], version: PolicyVersion, collected: Collected) -> None:
        """Into the step, or out of the run with a reason; `fault` is what is wrong with its images."""
        lag, orphan = policy_lag(group, version), is_orphan(group, version, self._lineage)
        if orphan and self._config.orphan_groups == "refeed":
            self._orphans.append(group)
        elif lag > self._config.max_off_policy_steps and not orphan:
            self._drop(group, STALE, collected, refill=True)
        elif reason := self._useless(group, fault.result()):
            resampled = collected.num_resampled < self._resampling_limit
            self._drop(group, reason, collected, refill=resampled)
            collected.num_resampled += resampled
        else:
            collected.groups.append(group)
            collected.lags.append(lag)

    def _drop(self, group: Group, reason: str, collected: Collected, refill: bool) -> None:
        """Out of the run; `refill` feeds the next attempt at its place in the same step."""
        id_ = group.prompt.id
        self._queue.drop(id_, reason, self._prompts.training(id_.next_attempt()) if refill else None)
        collected.dropped[reason] += 1
        collected.num_refilled += refill

    def _image_fault(self, group: Group) -> str | None:
        """Why an image of the group cannot be used, or None. A large one takes ten milliseconds."""
        try:
            for image in group.prompt.images:
                self._store.open(image)
        except UnreachableImageError:
            raise  # the group stays in Redis, and is read again after a restart
        except ImageError as error:
            return str(error)
        return None

    def _useless(self, group: Group, image_fault: str | None) -> str | None:
        """Why this group has no gradient, or cannot be trained on, or None; says so."""
        reason = self._fault(group, image_fault)
        if reason == IMAGE:
            log.warning("group dropped", prompt=str(group.prompt.id), reason=reason, detail=image_fault)
        elif reason == NOT_FINITE:
            log.warning("group dropped", prompt=str(group.prompt.id), reason=reason)
        elif reason == UNSCORED:
            self.last_unscored = _complaint(group)
        return reason

    def _fault(self, group: Group, image_fault: str | None) -> str | None:
        if image_fault is not None:
            return IMAGE
        if not all(math.isfinite(logprob) for rollout in group.rollouts for logprob in rollout.logprobs):
            return NOT_FINITE
        scored = [reward_of(group, index) for index in range(len(group.rollouts))]
        if group_advantages(scored) is None:
            return UNSCORED
        rewards = training_rewards(group, self._config)
        if group_advantages(rewards) is None:
            return OVERLONG
        keeps_equal = self._config.has_regularisation(group.prompt.task) and not self._config.dynamic_sampling
        return None if keeps_equal or has_variance(rewards) else NO_VARIANCE

    def _refuse_nothing(self, collected: Collected) -> None:
        """A run that samples and samples and trains nothing must not end as a success.

        Raises:
            ConfigurationError: dynamic sampling reached its limit without a single group, or every completion of
                several steps was masked as too long, or came with a log-probability that is none.
        """
        remedies = {
            OVERLONG: f"overlong mask: all completions of {_MAX_FRUITLESS_STEPS} steps were cut off at "
            f"max_completion_length {self._config.max_completion_length}; raise it, or set overlong to shape or none",
            NOT_FINITE: f"no group of {_MAX_FRUITLESS_STEPS} steps came with finite log-probabilities: the rollout "
            "servers sample tokens of probability 0 or NaN; look at the model's weights and at their dtype",
        }
        for reason, remedy in remedies.items():
            fruitless = not collected.groups and collected.dropped[reason] > 0
            self._fruitless[reason] = self._fruitless[reason] + 1 if fruitless else 0
            if self._fruitless[reason] == _MAX_FRUITLESS_STEPS:
                raise ConfigurationError(remedy)
        dropped = collected.dropped
        # These end the run by their own names, after some steps.
        others = dropped[OVERLONG] + dropped[NOT_FINITE] + dropped[UNSCORED]
        limit_reached = dropped.total() - dropped[STALE] - dropped[ORPHAN] > self._resampling_limit > 0
        if not collected.groups and limit_reached and dropped[NO_VARIANCE] and not others:
            raise ConfigurationError(
                f"dynamic_sampling: {dropped[NO_VARIANCE]} groups in a row had equal rewards; the problems "
                "are too easy or too hard for this model, or the reward cannot tell its answers apart: change them, "
                "raise num_generations or dynamic_sampling_limit, or turn dynamic_sampling off"
            )
