"""Which curves the report shows, and which fields of metrics.jsonl each is made of. Knows no drawing."""

from __future__ import annotations

from collections.abc import Iterable

from mmr1.report.charts import Chart, Line
from mmr1.report.held_out import held_out_curves
from mmr1.report.run_files import Record, RunFiles, number
from mmr1.report.series import Values

# title, what it shows, the curves as (name, field of metrics.jsonl), the first curve's colour
PLAIN = (
    (
        "KL from the reference",
        "Per token, mean of the step: the estimates k3 and k1, the exact sum over the vocabulary, Kimi's square",
        [("k3", "kl_k3"), ("k1", "kl_k1"), ("exact", "kl_kimifull"), ("Kimi", "kl_kimikl")],
        4,
    ),
    ("Entropy", "Of the sampled distribution, nats per token", [("entropy", "entropy")], 3),
    ("Temperature", "At which the step's completions were sampled", [("temperature", "temperature")], 5),
    (
        "Policy lag",
        "Weight updates between sampling and training",
        [("mean", "lag_mean"), ("p90", "lag_p90"), ("max", "lag_max")],
        1,
    ),
    ("Tokens per second", "Completion tokens, by wall time of the step", [("tokens/s", "tokens_per_second")], 6),
)
MECHANICS = (
    ("Sampler against learner", "KL from the policy that sampled, lag included", [("KL", "off_policy_kl")], 4),
    ("Sampler against learner, same version", "KL between the engines alone", [("mismatch KL", "mismatch_kl")], 5),
    ("Proof of each weight update", "Largest |Δ log p| on the probe", [("max |Δ log p|", "probe_max_abs_dlogp")], 2),
    (
        "Clipped and truncated",
        "Share of tokens",
        [("ratio clipped", "clip_fraction"), ("importance weight truncated", "tis_truncated_fraction")],
        1,
    ),
    (
        "Loss by term",
        "As they are added up, weights included",
        [(name, f"{name}_loss") for name in ("policy", "k1", "k3", "kimikl", "kimifull", "entropy")],
        1,
    ),
    ("Gradient norm", "Before clipping", [("norm", "grad_norm")], 3),
    ("Learning rate", "Of the step", [("learning rate", "learning_rate")], 5),
    ("Completion length", "Tokens, mean of the step", [("tokens", "completion_length_mean")], 6),
)


def curves(run: RunFiles) -> list[Chart]:
    """The run's charts, in the order of the page; one without any data is left out."""
    metrics = run.metrics
    steps = [float(record["step"]) for record in metrics]
    if not steps:
        return []
    charts = [
        _reward(steps, metrics),
        *_reward_by_task(steps, run),
        *held_out_curves(run.evaluations),
        parts_of(steps, metrics, "components", "Reward by component", "Mean of each, before weights", stacked=False),
        *(plain(steps, metrics, *row) for row in PLAIN),
        parts_of(
            steps, metrics, "outcomes", "Outcomes of scoring", "Completions; only ok and invalid_output have a reward"
        ),
        parts_of(steps, metrics, "phases", "Seconds by phase", "Where the step's wall time went", unit=" s"),
        parts_of(
            steps,
            metrics,
            "update_phases",
            "Seconds of each weight update",
            "From closing admission, when what is being sampled ends, to opening it",
            unit=" s",
        ),
        parts_of(steps, metrics, "dropped", "Groups dropped", "By reason; their prompts are fed again"),
        *(plain(steps, metrics, *row) for row in MECHANICS),
    ]
    return [chart for chart in charts if not chart.empty]


def plain(
    steps: list[float], metrics: list[Record], title: str, note: str, fields: list[tuple[str, str]], colour: int
) -> Chart:
    measured = [(name, _field(metrics, key)) for name, key in fields]
    lines = [Line(name, values) for name, values in measured if any(value is not None for value in values)]
    return Chart(title, note, steps, lines, from_zero=True, first_colour=colour)


def _reward(steps: list[float], metrics: list[Record]) -> Chart:
    mean, spread = _field(metrics, "reward_mean"), _field(metrics, "reward_std")
    low = [None if m is None or s is None else m - s for m, s in zip(mean, spread, strict=True)]
    high = [None if m is None or s is None else m + s for m, s in zip(mean, spread, strict=True)]
    note = "Weighted sum, mean of the step; band: ± 1 standard deviation of the samples"
    return Chart("Reward", note, steps, [Line("reward", mean, low, high)])


def _reward_by_task(steps: list[float], run: RunFiles) -> list[Chart]:
    """Nothing where all completions are of one task: that would be the reward once more."""
    metrics = run.metrics
    if not any("reward_by_task" in record for record in metrics):  # a run of an older release
        means = _means_of_completions(run)
        metrics = [{"reward_by_task": means.get(int(step), {})} for step in steps]
    note = "Weighted sum, mean of the step's completions of each task"
    chart = parts_of(steps, metrics, "reward_by_task", "Reward by task", note, stacked=False)
    return [chart] if len(chart.lines) > 1 else []


def _means_of_completions(run: RunFiles) -> dict[int, dict[str, float]]:
    sums: dict[tuple[int, str], list[float]] = {}
    for record in run.completions():
        reward, step = number(record, "reward"), record.get("step")
        if reward is not None and isinstance(step, int):
            total = sums.setdefault((step, str(record.get("task"))), [0.0, 0.0])
            total[0] += reward
            total[1] += 1
    means: dict[int, dict[str, float]] = {}
    for (step, task), (total_reward, count) in sums.items():
        means.setdefault(step, {})[task] = total_reward / count
    return means


def parts_of(
    steps: list[float], metrics: list[Record], key: str, title: str, note: str, stacked: bool = True, unit: str = ""
) -> Chart:
    """A chart of a field that maps names to numbers, as seconds by phase. In a stack an absent name counts as 0."""
    names = _names(record.get(key) for record in metrics)
    lines = []
    for name in names:
        values = [number(part, name) if isinstance(part := record.get(key), dict) else None for record in metrics]
        lines.append(Line(name, values))
    return Chart(title, note, steps, lines, stacked=stacked, from_zero=True, unit=unit)


def _names(parts: Iterable[object]) -> list[str]:
    """All names, those of the first record first, each once."""
    names: dict[str, None] = {}
    for part in parts:
        if isinstance(part, dict):
            names.update(dict.fromkeys(str(name) for name in part))
    return list(names)


def _field(metrics: list[Record], key: str) -> Values:
    return [number(record, key) for record in metrics]
