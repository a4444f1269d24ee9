"""The four demonstrations with three seeds each and a control: runs what is missing, then writes docs/results.md.

    make results                                               # all 16 runs, one after another; an hour or two
    python benchmarks/results.py --tasks ocr grounding         # of these tasks only
    python benchmarks/results.py --page                        # no run: the page from what is there
    python benchmarks/results.py --keep                        # no run: figures of finished runs in runs/results, anew

It may be stopped at any time and called again: a run whose file is in docs/results/ is not made again, unless options
or model have changed since, and one that was cut begins anew. Ends with 1 when a run failed or a task falls short.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from results_page import CONTROL, METRICS, SEEDS, Run, keep, write_page
from results_recipe import differs, recipe_today

from mmr1.errors import ConfigurationError

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "results"
RUNS = Path("runs") / "results"


def options(name: str) -> list[str]:
    """What makes a run of this name: the control is seed 0 with its rewards shuffled."""
    return ["--seed", "0", "--reward_shuffle", "true"] if name == CONTROL else ["--seed", name.removeprefix("seed")]


def command(task: str, name: str) -> list[str]:
    run = f"results-{task}-{name}"
    run_dir = RUNS / f"{task}-{name}"
    return [
        *(sys.executable, "-m", "mmr1", "demo", task),
        *("--run", run, "--run_dir", str(run_dir)),
        *options(name),
    ]


def missing(tasks: list[str], results: Path) -> list[tuple[str, str]]:
    """(task, run) of those that have no file yet; all of a seed come before the next, so that a cut leaves most."""
    runs = [(task, name) for name in (*SEEDS, CONTROL) for task in tasks]
    return [(task, name) for task, name in runs if not _is_kept(results / f"{task}-{name}.json", task)]


def _is_kept(path: Path, task: str) -> bool:
    """Whether a file holds a run of today's options and model."""
    try:
        return not differs(Run.read(path).recipe, recipe_today(task, REPOSITORY))
    except (OSError, ValueError):
        return False


def make(task: str, name: str) -> str:
    """Make one run and keep its figures. Returns why there are none: the runs after it are made all the same."""
    code = subprocess.run(command(task, name), cwd=REPOSITORY).returncode
    return f"failed (exit code {code})" if code else take_up(task, name)


def take_up(task: str, name: str) -> str:
    """Keep a finished run's figures. Returns why there are none."""
    try:
        keep(REPOSITORY / RUNS / f"{task}-{name}", RESULTS / f"{task}-{name}.json", REPOSITORY)
    except (OSError, ValueError, ConfigurationError) as error:
        return f"its figures are not whole ({error})"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(METRICS), default=list(METRICS), metavar="TASK")
    parser.add_argument("--page", action="store_true", help="make no run; write the page from docs/results/")
    parser.add_argument("--keep", action="store_true", help="make no run; keep figures of runs in runs/results/ anew")
    arguments = parser.parse_args()
    failed = []
    if arguments.keep:
        runs = [(task, name) for task in arguments.tasks for name in (*SEEDS, CONTROL)]
        runs = [(task, name) for task, name in runs if (REPOSITORY / RUNS / f"{task}-{name}").exists()]
    else:
        runs = [] if arguments.page else missing(arguments.tasks, RESULTS)
    for task, name in runs:
        print(f"{task}, {name}", flush=True)
        if why := take_up(task, name) if arguments.keep else make(task, name):
            failed.append(f"{task}-{name}")
            print(f"{task}, {name}: {why}; see {RUNS / f'{task}-{name}'}", file=sys.stderr, flush=True)
    try:
        tasks = write_page(RESULTS, REPOSITORY / "docs")
    except ValueError as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    for task, lacking in tasks.items():
        print(f"docs/results.md, {task}: {'not met: ' + ', '.join(lacking) if lacking else 'met'}")
    return 1 if failed or any(tasks.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
