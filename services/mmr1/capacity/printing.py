"""A plan as tables and as a JSON document. It computes nothing that a layout does not say."""

from __future__ import annotations

from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mmr1.capacity.advice import MOST_ROWS, name, notes, recommendation, rule_of_thumb
from mmr1.capacity.host import host_memory
from mmr1.capacity.layouts import Layout, Plan
from mmr1.capacity.measured import KEPT_FREE

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
        *([_FLOAT32] if work.number_bytes == 4 else []),
        f"{config.gpus} x {config.gpu} with {plan.gpu.memory_gib:g} GiB ({plan.memory_bytes / 1e9:.0f} GB) each; "
        f"{KEPT_FREE:.0%} is kept free. Estimates: constants measured at 3 B parameters, not on this machine.",
    ]


_FLOAT32 = "In float32, which was not measured on a GPU: the same shares of what the chip does in float32 are taken."


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
        "layouts": [_row(plan, layout) for layout in plan.layouts],
        "recommended": plan.layouts.index(chosen) if chosen else None,
        "recommendation": recommendation(plan) if chosen else None,
        "options": chosen.options() if chosen else None,
        "rule_of_thumb": rule_of_thumb(plan) if chosen else None,
        "notes": notes(plan),
    }


def _row(plan: Plan, layout: Layout) -> dict[str, Any]:
    host = host_memory(plan.work, plan.gpu, layout.learner)
    return {
        "name": name(layout),
        "shared": layout.shared,
        "fits": layout.fits,
        "prompts_per_step": layout.prompts_per_step,
        "learner_bytes": layout.learner.peak_bytes,
        "rollout_bytes": layout.rollout.bytes_needed,
        "learner_seconds": layout.learner.seconds,
        "rollout_seconds": layout.rollout.seconds,
        "host_bytes": host.starting,
        "host_bytes_kept": host.running,
        "copy_seconds": layout.learner.copy_seconds,
        "update_seconds": layout.update_seconds,
        "probe_seconds": layout.probe_seconds,
        "step_seconds": layout.step_seconds,
        "seconds_per_prompt": layout.seconds_per_prompt,
        "limited_by": layout.limit,
        "options": layout.options(),
    }
