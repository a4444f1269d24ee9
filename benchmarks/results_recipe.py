"""What a demonstration's outcome follows from beside its seed, as digests: options, the model, the problems.

Runs that are put side by side must have it in common, and what has changed since must be run again. Options at their
defaults are left out, so that a new one does not make old runs another recipe's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mmr1.config import RunConfig, load_config

# Where a run takes place, and what is meant to differ between runs.
OWN = {"run", "seed", "reward_shuffle", "model"}
PLACES = ("_dir", "_file", "_root", "_port", "_url")
Recipe = dict[str, str]


def recipe(config: RunConfig, relative_to: Path) -> Recipe:
    """Digests by what they are of. The problems are missing where they have not been drawn."""
    given = config.model_dump(mode="json", exclude_defaults=True)
    options = {key: value for key, value in given.items() if key not in OWN and not key.endswith(PLACES)}
    found = {
        "options": hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16],
        "model": _digest(relative_to / config.model / "model.safetensors"),
    }
    problems = [relative_to / path for path in (config.train_file, config.eval_file) if path is not None]
    if all(path.is_file() for path in problems):
        found["problems"] = "-".join(_digest(path) for path in problems)
    return found


def recipe_of_run(run_dir: Path, relative_to: Path) -> Recipe:
    """Raises OSError, ConfigurationError: the run's folder does not say how it was made."""
    return recipe(load_config(run_dir / "config.yaml"), relative_to)


def recipe_today(task: str, repository: Path) -> Recipe:
    """Of `examples/TASK.yaml` as it is now."""
    return recipe(load_config(repository / "examples" / f"{task}.yaml"), repository)


def differs(kept: Recipe, other: Recipe) -> list[str]:
    """Of what both say, what is not the same."""
    return [name for name in kept.keys() & other.keys() if kept[name] != other[name]]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
