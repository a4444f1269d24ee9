"""From a plan's samples to what the model takes: prompts encoded once, completions laid out as rows of one forward.

It opens images and knows shapes; it computes nothing with them. A step's batches are made in a thread beside the
device's work, and a batch's images by `learner_threads` more: an image takes tens of milliseconds on the host, which a
GPU would spend waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from PIL import Image

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Prompt
from mmr1_learner.model import PromptEncoder
from mmr1_learner.plan import Forward, Sample, StepPlan
from mmr1_learner.rows import Completion, EncodedPrompt, Row, RowBatch, pack
from mmr1_learner.splitting import split

Batches = list[list[Future[RowBatch]]]  # of each update


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step's batches, and the thread that makes them."""

    plan: StepPlan
    thread: ThreadPoolExecutor
    batches: Batches

    def end(self) -> None:
        """Wait for the batch under way, and not for all."""
        self.thread.shutdown(cancel_futures=True)


class Batcher:
    """Lays out one rank's forwards, in the host's memory: a step's pixels together may not fit on the device."""

    def __init__(self, config: RunConfig, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        # One for each thread: a tokenizer cannot be used by two at once.
        self._encoders: SimpleQueue[PromptEncoder] = SimpleQueue()
        for _ in range(config.learner_threads):
            self._encoders.put(encoder.another())
        self._store = ImageStore(config.resolved_image_root)
        self._threads = ThreadPoolExecutor(config.learner_threads, thread_name_prefix="images")
        self._expected: _UnderWay | None = None
        self._hidden_size: int = encoder.config.get_text_config().hidden_size

    def encode(self, plan: StepPlan, forwards: Iterable[Forward]) -> dict[int, EncodedPrompt]:
        """The prompts of these forwards, each once, by the index of their group.

        Raises:
            ConfigurationError: an image went, or changed, after rank 0 had looked at it.
        """
        indices = sorted({sample.group for forward in forwards for sample in forward})
        encoded = self._threads.map(lambda index: self._encode(plan.groups[index].prompt), indices)
        return dict(zip(indices, encoded, strict=True))

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        images = self._open(prompt)
        encoder = self._encoders.get()
        try:
            return encoder.encode(prompt.text, images)
        finally:
            self._encoders.put(encoder)

    def _open(self, prompt: Prompt) -> list[Image.Image]:
        try:
            return [self._store.open(image) for image in prompt.images]
        except UnreachableImageError:
            raise  # a restart may mend it
        except ImageError as error:
            raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None

    @contextmanager
    def ahead(
        self, plan: StepPlan, updates: Sequence[Sequence[Forward]], prepare: Callable[[RowBatch], RowBatch]
    ) -> Iterator[Batches]:
        """Inside, each update's batches are on their way; `prepare` is the last that happens to each in the thread.

        Waiting for one raises what `encode` does. They come in the order in which a step asks for them: the later
        updates' log-probabilities are taken before the first one moves the policy.
        """
        expected, self._expected = self._expected, None
        if expected is not None and expected.plan != plan:
            expected.end()
            expected = None
        under_way = expected or self._begin(plan, updates, prepare)
        try:
            yield under_way.batches
        finally:
            under_way.end()

    def expect(
        self, plan: StepPlan, updates: Sequence[Sequence[Forward]], prepare: Callable[[RowBatch], RowBatch]
    ) -> None:
        """Most likely `ahead` will be asked for the same: begin. If not, it costs no more than the time."""
        self.forget()
        self._expected = self._begin(plan, updates, prepare)

    def forget(self) -> None:
        """Nothing is expected any more."""
        if self._expected is not None:
            self._expected.end()
            self._expected = None

    def _begin(
        self, plan: StepPlan, updates: Sequence[Sequence[Forward]], prepare: Callable[[RowBatch], RowBatch]
    ) -> _UnderWay:
        prompts: dict[int, EncodedPrompt] = {}

        def make(forward: Forward) -> RowBatch:
            missing = [sample for sample in forward if sample.group not in prompts]
            prompts.update(self.encode(plan, [tuple(missing)]))
            return prepare(self.pack(plan, forward, prompts))

        thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        later = [[thread.submit(make, forward) for forward in update] for update in updates[1:]]
        first = [[thread.submit(make, forward) for forward in update] for update in updates[:1]]
        return _UnderWay(plan, thread, first + later)

    def pack(self, plan: StepPlan, forward: Forward, prompts: dict[int, EncodedPrompt]) -> RowBatch:
        """One forward's rows: for each group one, or several where completions are long, with what this rank holds."""
        by_group: dict[int, list[Completion]] = {}
        for sample in forward:
            by_group.setdefault(sample.group, []).append(_completion(plan, sample))
        rows: list[Row] = []
        for index, completions in by_group.items():
            sampling = plan.groups[index].prompt.sampling
            row = Row(prompts[index], tuple(completions), sampling.temperature, sampling.forbidden_token_ids)
            rows += split(row, self._hidden_size)
        return pack(rows, self._encoder.image_token_id, self._encoder.pad_token_id, sizes=self._encoder.sizes)


def _completion(plan: StepPlan, sample: Sample) -> Completion:
    rollout = plan.groups[sample.group].rollouts[sample.rollout]
    on_policy = all(span.version == plan.version for span in rollout.spans)
    return Completion(
        rollout.token_ids,
        rollout.logprobs,
        sample.advantage,
        sample.weight,
        on_policy,
        sample.in_policy_term,
        sample.in_kimikl,
    )
