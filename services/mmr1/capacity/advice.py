"""What a plan says in words: names of layouts, notes under the table, the rule of thumb, and what to do if none fits.

It computes nothing that a layout does not say, but for how many GPUs would do.
"""

from __future__ import annotations

from mmr1.capacity.host import host_memory
from mmr1.capacity.layouts import FIXING, MOST_GPUS, Layout, Plan, enough_gpus
from mmr1.capacity.measured import BETWEEN_NODES_BYTES_PER_SECOND, STEPS_OFF

MOST_ROWS = 24  # of the table


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


def notes(plan: Plan) -> list[str]:
    """What a reader of the table must know."""
    config, per_node = plan.config, plan.gpu.per_node
    lines = [
        "GB are of one GPU; !: more than fits. Seconds are a step's: of the slower half, with the weight update and "
        "its probe added to the rollout, at ZeRO-3 to the step."
    ]
    if plan.layouts[0].waits:
        lines = [lines[0].partition(": of")[0] + ": of both halves in turn, the weight update and its probe."]
    off = ", ".join(f"{layout} {100 * part:+.3g} %" for layout, part in STEPS_OFF.items())
    lines.append(
        "Whole steps, computed against the measured ones that constants were fitted to (3B parameters, H200s of one "
        f"machine; the one at ZeRO-3 was of an earlier version): {off}."
    )
    if len(plan.layouts) > MOST_ROWS:
        lines.append(f"{len(plan.layouts) - MOST_ROWS} more layouts, slower or too large: --json has them.")
    asked = plan.config.planned_prompts
    if any(layout.prompts_per_step != asked for layout in plan.layouts):
        lines.append(f"Where the ranks cannot share {asked} prompts evenly, the step is of more (see the column).")
    if config.gpus > per_node:
        lines.append(
            f"{config.gpus} GPUs are more than one machine's {per_node} (gpus_per_node): `mmr1 up` lays out one "
            "machine, so start ranks with torchrun and servers on each (docs/kubernetes.md). What crosses machines is "
            "counted at "
            f"{BETWEEN_NODES_BYTES_PER_SECOND / 1e9:.0f} GB/s, which is assumed and was not measured; layouts whose "
            "ranks fill whole machines are preferred."
        )
    if plan.chosen is not None:
        lines.append(_host(plan, plan.chosen))
        lines += _set_aside(plan, plan.chosen)
    return lines


def _host(plan: Plan, chosen: Layout) -> str:
    host, ranks = host_memory(plan.work, plan.gpu, chosen.learner), min(chosen.learner.num_ranks, plan.gpu.per_node)
    whose = f"{ranks} ranks of one machine load" if chosen.learner.zero_stage < 3 else "rank 0 loads"
    loading = "its rank loads the model" if ranks == 1 else f"{whose} the model"
    line = f"Host memory of the learner, {name(chosen)}: {host.starting / 1e9:.0f} GB while {loading}"
    return line + (f", {host.running / 1e9:.0f} GB after that, of the weights that are sent." if host.running else ".")


def _set_aside(plan: Plan, chosen: Layout) -> list[str]:
    """Options that were given and are answered by others."""
    options = chosen.options()
    # per_device_batch_size and gradient_accumulation_steps are used too: they say how many prompts a step has.
    lost = [
        option
        for option, value in options.items()
        if option in plan.config.model_fields_set and getattr(plan.config, option) != value
    ]
    if not lost:
        return []
    said = ", ".join(f"{option} {getattr(plan.config, option)}" for option in lost)
    line = f"Set aside for what is recommended: {said}."
    kept = [option for option in lost if option in (*FIXING, "gpu_memory_utilization")]
    return [line + (f" On the command line {', '.join(kept)} would be kept." if kept else "")]


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
    learner = min((one.learner for one in plan.layouts), key=lambda one: one.peak_bytes)
    server = min((one.rollout for one in plan.layouts), key=lambda one: one.bytes_needed)
    enough = enough_gpus(plan.config, plan.work, plan.gpu, plan.fixed)
    offers = [f"{enough} GPUs" if enough else f"a GPU with more memory: {MOST_GPUS} of these would not do"]
    if plan.config.gpus == 1 and enough:
        offers[0] += " (zero_stage 3 cuts the model over ranks)"
    if not any(one.learner_fits for one in plan.layouts):
        offers += _for_the_learner(plan)
    if not any(one.rollout_fits for one in plan.layouts):
        offers.append("a larger rollout_tensor_parallel_size (with more GPUs or fewer ranks) or gpu_memory_utilization")
    offers.append("a smaller max_completion_length or max_pixels")
    size = server.tensor_parallel_size
    return (
        f"no layout of {plan.config.gpus} x {plan.memory_bytes / 1e9:.0f} GB fits: a learner GPU needs "
        f"{learner.peak_bytes / 1e9:.0f} GB at least (learner_processes {learner.num_ranks}, zero_stage "
        f"{learner.zero_stage}, per_device_batch_size {learner.per_forward}) and a rollout GPU "
        f"{server.bytes_needed / 1e9:.0f} GB (rollout_tensor_parallel_size {size}); try {', '.join(offers)}"
    )


def _for_the_learner(plan: Plan) -> list[str]:
    config = plan.config
    offers = [] if config.lora_rank else ["lora_rank 16"]
    if config.kl and not config.lora_rank:
        offers.append("kl empty, which needs no reference model")
    if "gradient_checkpointing" in config.model_fields_set and config.gradient_checkpointing is not True:
        offers.append("gradient_checkpointing true")
    return [*offers, "offload_optimizer true, which is not planned for here: it was not measured"]
