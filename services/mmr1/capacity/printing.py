"""A plan as tables, as a JSON document, and in one line. It computes nothing that a layout does not say."""

from __future__ import annotations

from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mmr1.capacity.layouts import Layout, Plan
from mmr1.capacity.measured import GPUS_OF_A_NODE, KEPT_FREE, STEPS_OFF

MOST_ROWS = 24
NUMBERS = ("ZeRO", "prompts", "learner\nGB", "rollout\nGB", "learner\ns", "rollout\ns", "step\ns", "prompt\nms")


def show(console: Console, plan: Plan) -> None:
    """Heading, table, and for the recommended layout its options and the rule of thumb."""
    for line in _heading(plan):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(_table(plan))
    for line in notes(plan):
        console.print(line, soft_wrap=True, highlight=False)
    if plan.chosen is None:
        return
    console.print(f"\nRecommended: {recommendation(plan)}. In RUN.yaml:\n", soft_wrap=True, highlight=False)
    text = yaml.safe_dump(plan.chosen.options(), sort_keys=False)
    console.print("".join(f"    {line}\n" for line in text.splitlines()), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Rule of thumb: {rule_of_thumb(plan)}", soft_wrap=True, highlight=False)


def name(layout: Layout) -> str:
    """As users say it: 1+3 is a learner on one GPU and three rollout servers."""
    size, servers = layout.rollout.tensor_parallel_size, layout.rollout.num_servers
    if layout.shared:
        return "1 for both"
    rollout = f"{servers}" if size == 1 else f"{servers}x{size}"
    return f"{layout.learner.num_ranks}+{rollout} at ZeRO-{layout.learner.zero_stage}"


def recommendation(plan: Plan) -> str:
    """The recommended layout, and that its step is another one where it is."""
    layout, asked = plan.chosen, plan.config.planned_prompts
    assert layout is not None
    if layout.prompts_per_step == asked:
        return name(layout)
    return f"{name(layout)}, {layout.prompts_per_step} prompts a step instead of {asked}"


def _heading(plan: Plan) -> list[str]:
    work, config = plan.work, plan.config
    shape = work.shape
    source = "counted from its config.json" if shape.counted else "of its weights"
    return [
        f"{config.model}: {shape.model_type}, {_billions(shape.num_parameters)} parameters ({source}).",
        f"{config.planned_prompts} prompts a step, each of {work.prompt_tokens} tokens ({work.image_tokens} of images) "
        f"and with {work.num_generations} completions of {work.completion_tokens}: "
        f"{work.learner_flops(work.num_generations) / 1e12:.3g} TFLOP to train on. "
        f"{'With' if work.with_reference else 'Without'} a reference model.",
        f"{config.gpus} x {config.gpu} with {plan.gpu.memory_gib:g} GiB ({plan.memory_bytes / 1e9:.0f} GB) each; "
        f"{KEPT_FREE:.0%} is kept free. Estimates: constants measured at 3 B parameters, not on this machine.",
    ]


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def _table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("layout")
    for column in NUMBERS:
        table.add_column(column, justify="right")
    table.add_column("limit")
    for layout in plan.layouts[:MOST_ROWS]:
        style = "bold green" if layout is plan.chosen else None if layout.fits else "dim"
        table.add_row(*_cells(layout, chosen=layout is plan.chosen), style=style)
    return table


def _cells(layout: Layout, chosen: bool) -> list[str]:
    learner, rollout = layout.learner, layout.rollout
    return [
        ("*" if chosen else " ") + name(layout).partition(" at ")[0],
        str(learner.zero_stage),
        str(layout.prompts_per_step),
        f"{learner.peak_bytes / 1e9:.0f}" + ("" if layout.learner_fits else "!"),
        f"{rollout.bytes_needed / 1e9:.0f}" + ("" if layout.rollout_fits else "!"),
        f"{learner.seconds:.2f}",
        f"{rollout.seconds:.2f}",
        f"{layout.step_seconds:.2f}",
        f"{1e3 * layout.seconds_per_prompt:.0f}",
        layout.limit,
    ]


def notes(plan: Plan) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        "GB are of one GPU; !: more than fits. Seconds are a step's; a step is the slower half, the weight update and "
        "its probe."
    ]
    if plan.layouts[0].waits:
        lines = [lines[0].replace("the slower half", "both halves in turn")]
    off = ", ".join(f"{layout} {part:+.0%}" for layout, part in STEPS_OFF.items())
    lines.append(f"Whole steps, predicted against measured (3B parameters, H200s of one machine): {off}.")
    if len(plan.layouts) > MOST_ROWS:
        lines.append(f"{len(plan.layouts) - MOST_ROWS} more layouts, slower or too large: --json has them.")
    asked = plan.config.planned_prompts
    if any(layout.prompts_per_step != asked for layout in plan.layouts):
        lines.append(f"Where the ranks cannot share {asked} prompts evenly, the step is of more (see the column).")
    if plan.config.gpus > GPUS_OF_A_NODE:
        lines.append(
            f"{plan.config.gpus} GPUs are more than one machine's {GPUS_OF_A_NODE}: `mmr1 up` lays out one machine, so "
            "start ranks with torchrun and servers on each (docs/kubernetes.md). Links between machines are slower "
            "than the one that was measured: learner seconds are too low, above all at ZeRO-3."
        )
    return lines


def rule_of_thumb(plan: Plan) -> str:
    """The proportion of the two halves, from what a prompt costs a GPU of each in the recommended layout."""
    layout = plan.chosen
    assert layout is not None
    learner = layout.learner.num_ranks * layout.learner.seconds / layout.prompts_per_step
    gpus = layout.rollout.num_servers * layout.rollout.tensor_parallel_size
    rollout = gpus * layout.rollout.seconds / layout.prompts_per_step
    many, one, ratio = (
        ("learner", "rollout", learner / rollout) if learner >= rollout else ("rollout", "learner", rollout / learner)
    )
    return (
        f"a prompt takes {learner:.2g} s of a learner GPU and {rollout:.2g} s of a rollout GPU, so {ratio:.1f} {many} "
        f"GPUs keep up with one {one} GPU."
    )


def remedy(plan: Plan) -> str:
    """One line for the case that nothing fits, with what is left to try."""
    least = min(plan.layouts, key=lambda one: one.learner.peak_bytes)
    tight = [side for side, fits in (("learner", least.learner_fits), ("rollout", least.rollout_fits)) if not fits]
    offers = ["more GPUs" if plan.config.gpus > 1 else "two GPUs or more (zero_stage 3 cuts the model over ranks)"]
    offers += [] if plan.config.lora_rank else ["lora_rank 16"]
    if plan.config.kl and not plan.config.lora_rank:
        offers.append("kl empty, which needs no reference model")
    if "gradient_checkpointing" in plan.config.model_fields_set and plan.config.gradient_checkpointing is not True:
        offers.append("gradient_checkpointing true")
    offers.append("a smaller max_completion_length or max_pixels")
    if "rollout" in tight:
        offers.append("a smaller max_num_seqs")
    return (
        f"no layout of {plan.config.gpus} x {plan.memory_bytes / 1e9:.0f} GB fits: a learner GPU needs "
        f"{least.learner.peak_bytes / 1e9:.0f} GB and a rollout GPU {least.rollout.bytes_needed / 1e9:.0f} GB even "
        f"with per_device_batch_size {least.learner.per_forward}; try {', '.join(offers)}"
    )


def document(plan: Plan) -> dict[str, Any]:
    """For programs. Bytes and seconds, not rounded."""
    work, shape = plan.work, plan.work.shape
    chosen = plan.chosen
    return {
        "model": plan.config.model,
        "model_type": shape.model_type,
        "num_parameters": shape.num_parameters,
        "parameters_counted": shape.counted,
        "gpus": plan.config.gpus,
        "gpu": plan.config.gpu,
        "gpu_memory_bytes": plan.memory_bytes,
        "prompts_per_step": plan.config.planned_prompts,
        "prompt_tokens": work.prompt_tokens,
        "image_tokens": work.image_tokens,
        "completion_tokens": work.completion_tokens,
        "num_generations": work.num_generations,
        "flops_per_group": work.learner_flops(work.num_generations),
        "with_reference": work.with_reference,
        "layouts": [_row(layout) for layout in plan.layouts],
        "recommended": plan.layouts.index(chosen) if chosen else None,
        "recommendation": recommendation(plan) if chosen else None,
        "options": chosen.options() if chosen else None,
        "rule_of_thumb": rule_of_thumb(plan) if chosen else None,
        "notes": notes(plan),
    }


def _row(layout: Layout) -> dict[str, Any]:
    return {
        "name": name(layout),
        "shared": layout.shared,
        "fits": layout.fits,
        "prompts_per_step": layout.prompts_per_step,
        "learner_bytes": layout.learner.peak_bytes,
        "rollout_bytes": layout.rollout.bytes_needed,
        "learner_seconds": layout.learner.seconds,
        "rollout_seconds": layout.rollout.seconds,
        "copy_seconds": layout.learner.copy_seconds,
        "update_seconds": layout.update_seconds,
        "probe_seconds": layout.probe_seconds,
        "step_seconds": layout.step_seconds,
        "seconds_per_prompt": layout.seconds_per_prompt,
        "limited_by": layout.limit,
        "options": layout.options(),
    }
