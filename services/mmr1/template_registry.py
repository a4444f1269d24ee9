"""The templates that come with the project: one table, a name each, with what it is for and where its words are from.

A name stands for three templates, and a run may take each of them from another name. Words that others published are
theirs to the letter, since a model that has been trained on them knows them; two of our names differ and say so. This
file holds texts; it looks nothing up and renders nothing. docs/templates.md is generated from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmr1.records import Problem

# A text in which {problem} and {solution} are replaced, or a callable that takes the Problem.
Template = str | Callable[[Problem], str]

_QWEN = "You are a helpful assistant. "  # with a blank at its end, as Perception-R1's prompts have it
_PR1 = "linkangheng/PR1, src/open_r1/constants.py, as philipmit/PR1@accb7cb holds it"
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: its three templates, for what, read by which tasks of the reward server, and the words' source."""

    system_prompt: Template  # empty: no system message of ours; the model's own chat template may still add one
    question: Template
    answer: Template
    purpose: str
    tasks: tuple[str, ...]
    source: str


TEMPLATES: dict[str, Entry] = {
    "default": Entry(
        system_prompt="",
        question="{problem} Put the answer in <answer></answer>.",
        answer="<answer>{solution}</answer>",
        purpose="A short answer in tags, without reasoning.",
        tasks=("counting", "grounding", "detection", "ocr", "accuracy"),
        source="this project",
    ),
    "grounding": Entry(
        system_prompt="",
        question="{problem} Answer with its box [x1, y1, x2, y2] as JSON in <answer></answer>.",
        answer="<answer>{solution}</answer>",
        purpose="One box as JSON in tags. A warm start says it in the coordinates of the model's family.",
        tasks=("grounding",),
        source="this project",
    ),
    "detection": Entry(
        system_prompt="",
        question=(
            '{problem} Answer with a JSON list in <answer></answer>, [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}], '
            "which is empty if there is nothing."
        ),
        answer="<answer>{solution}</answer>",
        purpose="A list of boxes with labels as JSON in tags, in the coordinates of the model's family.",
        tasks=("detection",),
        source="this project",
    ),
    "qwen": Entry(
        system_prompt="You are a helpful assistant.",
        question="{problem}",
        answer="{solution}",
        purpose="The problem as it stands, under the system prompt that Qwen's own chat template gives.",
        tasks=("counting", "grounding", "detection", "ocr", "accuracy"),
        source="the chat template of Qwen2-VL and Qwen2.5-VL",
    ),
    "llava": Entry(
        system_prompt=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions."
        ),
        question="{problem}",
        answer="{solution}",
        purpose="The problem as it stands, under the system prompt that LLaVA 1.5 was trained with.",
        tasks=("counting", "grounding", "detection", "ocr", "accuracy"),
        source="LLaVA 1.5, whose conversations begin so (Vicuna's v1 format)",
    ),
    "r1v": Entry(
        # R1-V gives it to text-only problems; with images it uses the question template alone.
        system_prompt=(
            "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
            "assistant first thinks about the reasoning process in the mind and then provides the user with the "
            "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
            "tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"
        ),
        question=(
            "{problem}  Output the thinking process in <think> </think> and final answer (number) in <answer> "
            "</answer> tags."
        ),
        answer="<think></think><answer>{solution}</answer>",
        purpose="Reasoning, then a number, both in tags. R1-V has no answer template; ours leaves the thought empty.",
        tasks=("r1v_accuracy", "counting", "accuracy", "format"),
        source="Deep-Agent/R1-V@bbbbe3d, src/r1-v/src/open_r1/grpo.py",
    ),
    "pr1_grounding": Entry(
        system_prompt=_QWEN,
        question="Output the bounding box of the {problem} in the image.",
        answer="{solution}",
        purpose="One box of what the problem names, in Qwen2-VL's own notation on a grid of 0 to 1000.",
        tasks=("pr1_grounding", "mmr1_grounding"),
        source=_PR1,
    ),
    "pr1_counting": Entry(
        system_prompt=_QWEN,
        question="Output all the bounding boxes of the {problem}",
        answer="{solution}",
        purpose="A box for each object; their number is the count. The reward reads special tokens.",
        tasks=("pr1_counting",),
        source=_PR1,
    ),
    "pr1_detection": Entry(
        system_prompt=_QWEN,
        question=f"Please output bbox coordinates and names of {_COCO}.",
        answer="{solution}",
        purpose="Boxes and names of COCO's 80 classes as JSON. The problem's own text is not used.",
        tasks=("pr1_detection", "detection"),
        source=_PR1,
    ),
    "pr1_ocr": Entry(
        system_prompt=_QWEN,
        question="OCR this image.",
        answer="{solution}",
        purpose="All text in the image. The problem's own text is not used.",
        tasks=("mmr1_ocr", "ocr"),
        source="Perception-R1 (arXiv 2504.07954), table 8; the released code holds only a mark in its place",
    ),
}


__all__ = ["TEMPLATES", "Entry", "Template"]
