"""Problems to prompts: the data order, the templates, the model's coordinates, and how completions are to be drawn.

Deterministic: the same run, position and attempt always give the same prompt, so a place that Redis has forgotten can
be fed again. Knows nothing of queues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mmr1.chat_template import ChatTemplate
from mmr1.config import RunConfig
from mmr1.coordinates import ModelSpace
from mmr1.data_order import Order
from mmr1.dataset import order_of
from mmr1.errors import ConfigurationError
from mmr1.evaluation import metrics_of
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import Problem, Prompt, PromptId, RewardSpec, Sampling
from mmr1.templates import Templates, render

_ATTEMPT_STRIDE = 2**32  # places: more than any run has, and the same whatever num_steps becomes


class PromptFactory:
    """Makes the prompts of one run."""

    def __init__(self, config: RunConfig, problems: Sequence[Problem], forbidden_token_ids: tuple[int, ...]) -> None:
        self._config = config
        self._problems = problems
        self._store = ImageStore(config.resolved_image_root)
        self._model_space = ModelSpace(config, self._store)
        self._templates = Templates.from_config(config)
        self._chat_template = ChatTemplate.load(config.model)
        self._forbidden = forbidden_token_ids

    @cached_property
    def _order(self) -> Order:
        return order_of(self._problems, self._config)

    def training(self, id_: PromptId) -> Prompt:
        """The prompt of one attempt at one position, at the temperature of the step that the position belongs to."""
        config = self._config
        # Dynamic sampling asks something else at a place whose group was of no use, and not the same again.
        elsewhere = id_.attempt * _ATTEMPT_STRIDE if config.dynamic_sampling else 0
        problem = self._problems[self._order.index(id_.position + elsewhere)]
        step = id_.position // config.prompts_per_step
        sampling = self.sampling(
            config.temperature_at(step, config.num_steps), _seed(config.seed, "train", id_.position, id_.attempt)
        )
        return self.make(id_, problem, sampling, config.num_generations, config.reward_specs_for(problem.task))

    def sampling(self, temperature: float, seed: int | None) -> Sampling:
        """The run's way of drawing completions, at a temperature."""
        config = self._config
        return Sampling(
            temperature=temperature,
            max_completion_length=config.max_completion_length,
            top_p=config.top_p if temperature else 1.0,
            seed=seed,
            forbidden_token_ids=self._forbidden,
            stop=tuple(config.stop),
        )

    def evaluation(self, place: int, problem: Problem, temperature: float, num_generations: int = 1) -> Prompt:
        """The prompt that asks the held-out problem at `place`; at a temperature of 0 greedily.

        Its one reward is the problem's own task with what its metrics are made of, and not the run's rewards.
        """
        seed = _seed(self._config.seed, "eval", place) if temperature else None
        reward = RewardSpec(problem.task, 1.0, dict(metrics_of(problem.task).params))
        id_ = PromptId(f"{self._config.run}/eval", place)
        return self.make(id_, problem, self.sampling(temperature, seed), num_generations, (reward,))

    def image_size(self, prompt: Prompt) -> tuple[int, int] | None:
        """Width and height of the original image that coordinates count: the first; None for a prompt without any.

        Raises:
            ConfigurationError: it was there when the run began and is no longer.
        """
        try:
            return self._store.size(prompt.images[0].path) if prompt.images else None
        except UnreachableImageError:
            raise
        except ImageError as error:
            raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None

    def make(
        self,
        id_: PromptId,
        problem: Problem,
        sampling: Sampling,
        num_generations: int,
        rewards: tuple[RewardSpec, ...] = (),
    ) -> Prompt:
        """The prompt that asks this problem: boxes in its text are as the model says them, in its solution in pixels.

        Raises:
            ConfigurationError: an image was there when the run began and is no longer, a template fails, or in what
                the model says boxes cannot be known.
            UnreachableImageError: where images are kept does not answer.
        """
        try:
            images = tuple(self._store.ref(image) for image in problem.images)
        except UnreachableImageError:
            raise
        except ImageError as error:
            raise ConfigurationError(f"{error}; restore it, and the same command goes on") from None
        asked, rewards = self._model_space.of(problem, rewards)
        return Prompt(
            id=id_,
            text=render(asked, self._templates, self._chat_template),
            images=images,
            task=problem.task,
            problem=problem.problem,
            solution=problem.solution,
            num_generations=num_generations,
            sampling=sampling,
            rewards=rewards,
        )


def _seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part; numpy's and torch's generators both take it."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


def forbidden_tokens(model_config: Any) -> tuple[int, ...]:
    """Placeholders that a completion must never contain: a stray one would count as an image."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    found = (getattr(model_config, name, None) for name in names)
    return tuple(sorted({token for token in found if token is not None}))
