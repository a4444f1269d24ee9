"""A dataset's problems with the answers to be learned, laid out as rows of one forward.

Prompts are worded as reinforcement words them and answers by the answer template, so the two trainings meet the same
text; the boxes in an answer are as the model says them. A row holds one prompt and one answer; the token that ends the
model's turn belongs to the answer. Answers are not kept in memory, as problems are not. This file knows no optimizer
and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmr1.config.sft_options import SftConfig
from mmr1.coordinates import ModelSpace
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.records import Problem, PromptId
from mmr1.templates import Templates, render_answer
from mmr1_learner.model import PromptEncoder
from mmr1_learner.prompts import PromptFactory
from mmr1_learner.rows import Completion, Row, RowBatch, pack
from mmr1_learner.supervised.answers import Answers

TEMPERATURE = 1.0
_AT_ONCE = 1024  # answers rendered and tokenised together


class Examples:
    """The problems of one file. Answers are tokenised at once, images are opened when a row is laid out.

    Raises:
        ConfigurationError: an answer is too long, or the tokenizer has no token that ends a turn.
    """

    def __init__(
        self,
        config: SftConfig,
        encoder: PromptEncoder,
        problems: Sequence[Problem],
    ) -> None:
        self._encoder = encoder
        self.problems = problems
        self._store = ImageStore(config.resolved_image_root)
        self._run = config.run
        # The sampler is kept from placeholder tokens. An answer may hold them as text, and is scored as it stands.
        self.prompts = PromptFactory(config, problems, ())
        self._answers = encode_answers(config, encoder, problems)

    def __len__(self) -> int:
        return len(self.problems)

    def num_tokens(self, index: int) -> int:
        """Tokens of one answer, the one that ends it included."""
        return len(self._answers[index])

    def record(self, index: int) -> dict[str, Any]:
        """One problem, for a dump."""
        problem = self.problems[index]
        return {
            "row": problem.position,
            "problem": problem.problem,
            "solution": problem.solution,
            "images": list(problem.images),
            "num_tokens": self.num_tokens(index),
        }

    def pack(self, indices: Sequence[int], weights: Sequence[float]) -> RowBatch:
        """One forward, in the host's memory: a row for each index, whose tokens each weigh `weights[i]` (0: a dummy).

        Raises:
            ImageError: an image is not what it was when the run began.
        """
        rows = []
        for index, weight in zip(indices, weights, strict=True):
            prompt = self.prompts.make(
                PromptId(self._run, index), self.problems[index], self.prompts.sampling(TEMPERATURE, None), 1
            )
            encoded = self._encoder.encode(prompt.text, [self._store.open(image) for image in prompt.images])
            answer = self._answers[index]
            completion = Completion(answer, (0.0,) * len(answer), advantage=0.0, weight=weight)
            rows.append(Row(encoded, (completion,), TEMPERATURE))
        return pack(rows, self._encoder.image_token_id, self._encoder.pad_token_id, sizes=self._encoder.sizes)


def encode_answers(config: SftConfig, encoder: PromptEncoder, problems: Sequence[Problem]) -> Answers:
    """The token ids that the model is to say to each problem: the rendered answer, then the end of its turn.

    The answer is tokenised apart from the prompt, as a sampled completion's tokens are apart from it.

    Raises:
        ConfigurationError: an answer is longer than max_completion_length, nothing can end one, in what the model
            says boxes cannot be known, or the disk is full.
    """
    tokenizer = encoder.processor.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigurationError(f"model {config.model}: its tokenizer has no eos_token; set it in its folder")
    templates = Templates.from_config(config)
    model_space = ModelSpace(config, ImageStore(config.resolved_image_root))
    answers = Answers()
    length, longest = 0, ""
    for start in range(0, len(problems), _AT_ONCE):
        some = list(problems[start : start + _AT_ONCE])
        texts = [render_answer(model_space.taught(problem), templates) for problem in some]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for problem, text, token_ids in zip(some, texts, encoded, strict=True):
            answers.append((*token_ids, end))
            if len(token_ids) + 1 > length:
                length, longest = len(token_ids) + 1, f"the answer {text[:40]!r} of row {problem.position}"
    answers.seal()
    if length > config.max_completion_length:
        raise ConfigurationError(
            f"{longest} has {length} tokens with the one that ends it, above max_completion_length "
            f"{config.max_completion_length}; raise it, or choose another answer_template"
        )
    return answers


__all__ = ["Examples", "encode_answers"]
