"""`mmr1 plan [RUN.yaml] --gpus N`: which layout of N GPUs a run should take, from its model's config.json alone.

It reads the options and prints; what it prints is computed beside it. No GPU, no weights and no torch are needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mmr1.capacity.advice import remedy
from mmr1.capacity.layouts import FIXING, Plan, layouts, recommended
from mmr1.capacity.measured import GPUS
from mmr1.capacity.printing import document, show
from mmr1.capacity.shapes import read_shape
from mmr1.capacity.work import work_of
from mmr1.config import RunConfig
from mmr1.config.loading import given_names, load_options, option_help
from mmr1.config.plan_options import PlanConfig
from mmr1.errors import ConfigurationError
from mmr1.local.gpus import place
from mmr1.model_folder import local_folder

USAGE = "usage: mmr1 plan [RUN.yaml] --gpus N [--model PATH] [--json] [--option value ...]"


def main(argv: Sequence[str]) -> int:
    """Print the layouts and the one to take.

    Raises:
        ConfigurationError: an option, the file or the model is wrong, or no layout fits.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(f"{USAGE}\n\nOptions, with their defaults: the plan's own, then those of a run, by which it computes:\n")
        print(option_help(PlanConfig))
        return 0
    path = None if argv[0].startswith("--") else Path(argv[0])
    arguments = ["--as_json" if argument == "--json" else argument for argument in argv[0 if path is None else 1 :]]
    config = load_options(PlanConfig, path, arguments)
    plan = make_plan(config, given_names(PlanConfig, arguments))
    require_accepted(config, plan)
    if config.as_json:
        print(json.dumps(document(plan), indent=2))
    else:
        show(Console(), plan)
    if plan.chosen is None:
        raise ConfigurationError(remedy(plan))
    return 0


def make_plan(config: PlanConfig, fixed: frozenset[str] = frozenset()) -> Plan:
    """Read the model's shape and compute every layout that keeps the options named in `fixed`.

    Raises:
        ConfigurationError: the model cannot be read, or the run has what a plan knows nothing about, or no layout
            keeps what is fixed.
    """
    if config.offload_optimizer or config.offload_parameters:
        raise ConfigurationError(
            "mmr1 plan does not know what offloading costs, which was not measured; set offload_optimizer and "
            "offload_parameters to false"
        )
    folder = local_folder(config.model)
    if folder is None:
        raise ConfigurationError(
            f"model {config.model!r} is not on this machine; download its config.json and preprocessor_config.json "
            "into a folder and give that"
        )
    shape = read_shape(config.model, folder)
    work = work_of(config, shape, folder)
    gpu = GPUS[config.gpu]
    gpu = replace(gpu, memory_gib=config.gpu_memory) if config.gpu_memory else gpu
    flops = gpu.float32_flops if config.planned_dtype == "float32" else gpu.flops
    gpu = replace(gpu, flops=flops, per_node=config.gpus_per_node)
    found = layouts(config, work, gpu, fixed)
    if not found:
        kept = " and ".join(f"{name} {getattr(config, name)}" for name in FIXING if name in fixed)
        raise ConfigurationError(f"no layout of {config.gpus} GPUs has {kept}; leave one of them out, or change gpus")
    chosen = recommended(found, config.planned_prompts, gpu.per_node)
    return Plan(config, work, gpu, tuple(found), chosen, fixed)


def require_accepted(config: PlanConfig, plan: Plan) -> None:
    """That a run takes the options which are about to be printed, by its own rules.

    Raises:
        ConfigurationError: another option of the run contradicts them.
    """
    if plan.chosen is None:
        return
    run = {name: getattr(config, name) for name in config.model_fields_set & set(RunConfig.model_fields)}
    needed = {"train_file": config.train_file, "num_steps": config.num_steps}
    needed |= {} if config.num_steps or config.num_epochs else {"num_steps": 1}
    try:
        checked = RunConfig(**{**run, **needed, **plan.chosen.options()})
    except ValueError as error:
        raise ConfigurationError(f"the run's own options contradict the plan: {' '.join(str(error).split())}") from None
    place(checked, [str(index) for index in range(config.gpus)])
