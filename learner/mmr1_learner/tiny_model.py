"""`mmr1 tiny-model`: a 2 M parameter Qwen2.5-VL of the project's own, from nothing to a folder that answers.

It has a byte-level tokenizer with Qwen's special tokens, a ChatML template and Qwen's image processor, so everything
that loads the large models loads it. sft.py gives it its warm start. This file knows nothing of training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from mmr1.digits.counting import QUESTION
from mmr1.digits.tasks import DigitTask
from mmr1.errors import CONFIGURATION_ERROR, ConfigurationError
from mmr1.templates import QUESTIONS
from mmr1_learner.sft import WarmStart
from mmr1_learner.vision_attention import batch_vision_attention

HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, WIDENING = 128, 4, 4, 2, 3
INITIALIZER_RANGE = 0.02  # of the large models'
NUM_MERGED = 96  # tokens that byte pairs merge into: the words of the prompts fit with room to spare
# What stands between the numbers of boxes and their labels, a token each: an answer is hardly more than its digits.
BOX_MARKS = ('[{"bbox_2d": [', '], "label": "', '"}, {"bbox_2d": [', '"}]', ", ", "[", "]")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# One token each, but ordinary ones: they stay in the text of a completion, where rewards look for them.
TAGS = ("<answer>", "</answer>", "<think>", "</think>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tokenizer(questions: Sequence[str], marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges come from the prompts' own words, so that a question is a handful of tokens.

    Any other text is still encoded, a byte a token. Digits never merge with each other. `marks` are texts that become a
    token each, wherever they stand.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL_TOKENS) + len(alphabet) + NUM_MERGED
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    words = [text.replace("{problem}", question) for text in _question_texts() for question in questions]
    tokenizer.train_from_iterator([*words, "user\n", "assistant\n", "system\n"], trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*TAGS, *marks)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        model_max_length=4096,
    )


def tokenizer_for(tasks: Sequence[DigitTask]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model that learns these tasks."""
    marks = BOX_MARKS if any(task.task in ("grounding", "detection") for task in tasks) else ()
    return build_tokenizer([question for task in tasks for question in task.questions], marks)


def _question_texts() -> list[str]:
    return [
        template for name, template in QUESTIONS.items() if isinstance(template, str) and name in ("default", "qwen")
    ]


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, initializer_range: float = INITIALIZER_RANGE
) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model in float32, its weights drawn from `seed`; output and input embeddings are tied.

    `initializer_range` is their standard deviation.
    """

    def token(text: str) -> int:
        return cast(int, tokenizer.convert_tokens_to_ids(text))

    eos, pad = token("<|im_end|>"), token("<|endoftext|>")
    half = HIDDEN // HEADS // 2
    height = half * 3 // 8
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": HIDDEN,
            "intermediate_size": WIDENING * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * height, height, height],
            },
            "eos_token_id": eos,
            "pad_token_id": pad,
            "bos_token_id": None,
            "tie_word_embeddings": True,
            "initializer_range": initializer_range,
        },
        vision_config={
            "depth": LAYERS,
            "hidden_size": HIDDEN,
            "intermediate_size": WIDENING * HIDDEN,
            "num_heads": HEADS,
            "out_hidden_size": HIDDEN,
            # Windows would hide most digits from each other: with one full layer of four, counting is not learned.
            "fullatt_block_indexes": list(range(LAYERS)),
            "window_size": 112,
            "initializer_range": initializer_range,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    batch_vision_attention(model)
    model.generation_config = GenerationConfig(eos_token_id=[eos, pad], pad_token_id=pad)
    return model


def build_image_processor() -> Qwen2VLImageProcessor:
    """Qwen's own, with bounds that suit a small model: 4 to 64 image tokens."""
    return Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=224 * 224)


def build(folder: Path, seed: int = 0) -> None:
    """Write the untrained model's folder: enough to load and to score, with answers that mean nothing."""
    tokenizer = build_tokenizer([QUESTION])
    save(folder, build_model(tokenizer, seed), tokenizer, build_image_processor(), [])


def save(
    out: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    image_processor: Qwen2VLImageProcessor,
    measurements: list[dict[str, Any]],
) -> None:
    """Write the folder that transformers and vLLM load, and how its warm start went as warm_start.json."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it private; a container's user must read it
    tokenizer.save_pretrained(out)
    image_processor.save_pretrained(out)
    if measurements:
        lines = ",\n".join(map(json.dumps, measurements))
        (out / "warm_start.json").write_text(f"[\n{lines}\n]\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mmr1 tiny-model ...`: 0 done, 1 the target accuracy was not reached (saved all the same), 2 wrong input."""
    try:
        arguments = _parser().parse_args(argv)
        return _make(arguments)
    except ConfigurationError as error:
        print(f"mmr1: error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR


def _make(arguments: argparse.Namespace) -> int:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: this torch sees no GPU; use --device cpu")
    folders = arguments.data or [Path("data/digits/counting")]
    start = WarmStart(folders, batch_size=arguments.batch_size, seed=arguments.seed, workers=arguments.workers)
    image_processor = build_image_processor()
    tasks = [course.task for course in start.courses]
    earlier: list[dict[str, Any]] = []
    if arguments.start is None:
        tokenizer = tokenizer_for(tasks)
        model = build_model(tokenizer, arguments.seed, arguments.initializer_range)
    else:
        tokenizer, model, earlier = _load(arguments.start)
    target = arguments.target_accuracy
    if target is None and {task.task for task in tasks} == {"counting"}:
        target = 0.5
    device = torch.device(arguments.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    history = start.train(
        model.to(device),
        tokenizer,
        image_processor,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        target_accuracy=target,
        warmup_steps=arguments.warmup_steps,
        sight_steps=arguments.sight_steps,
        answer_tokens=arguments.answer_tokens,
    )
    measurements = [*earlier, *(progress.as_json() for progress in history)]
    save(arguments.out, model.cpu(), tokenizer, image_processor, measurements)
    reached = history[-1].greedy
    print(f"{arguments.out}: saved with held-out accuracy {reached:.3f} after {history[-1].step} steps", flush=True)
    if target is not None and reached < target:
        print(f"mmr1: below the target of {target}: give more --steps", file=sys.stderr)
        return 1
    return 0


def _load(
    folder: Path,
) -> tuple[PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, list[dict[str, Any]]]:
    """What an earlier call of this command has saved, with its measurements.

    Raises ConfigurationError when it is not there.
    """
    try:
        measurements = json.loads((folder / "warm_start.json").read_text())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        for name in ("is_local", "local_files_only"):  # of this loading alone; they would be saved with it
            tokenizer.init_kwargs.pop(name, None)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        batch_vision_attention(model)
        return tokenizer, model, measurements
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"--start {folder}: {reason}; give a folder that this command has written") from None


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


def _deviation(text: str) -> float:
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0, at most 1")
    return number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mmr1 tiny-model", description="build a small Qwen2.5-VL and teach it half of a task")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on with the model of an earlier call")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        metavar="DIR",
        help="from `mmr1 data digits`; several are learned together; default: data/digits/counting",
    )
    parser.add_argument("--sight-steps", type=int, default=0, metavar="N", help="of the vision tower alone, before")
    parser.add_argument(
        "--answer-tokens", type=_at_least_one, metavar="N", help="train on no more than the first N tokens of an answer"
    )
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="at most")
    parser.add_argument(
        "--target-accuracy",
        type=float,
        metavar="SHARE",
        help="of held-out answers exactly right, greedily: stop there; default: 0.5 for counting, else never",
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE")
    parser.add_argument("--warmup-steps", type=int, default=200, metavar="N", help="of the learning rate")
    parser.add_argument(
        "--initializer-range",
        type=_deviation,
        default=INITIALIZER_RANGE,
        metavar="STD",
        help="standard deviation of the first weights; 0.08 suits so small a model better than the large ones' 0.02",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes that draw; default: by the cores"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
