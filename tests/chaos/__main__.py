"""`python -m tests.chaos`: many faults on one run, and a table of them. Exit code 1 when a promise fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.campaign import draw_problems, run_campaign, table
from tests.chaos.faults import FAULTS, draw
from tests.chaos.stack import PROMPTS_PER_STEP


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--faults", type=int, default=len(FAULTS), help="how many; every kind comes once before any comes twice"
    )
    parser.add_argument("--seed", type=int, default=0, help="of their order and of random moments")
    parser.add_argument("--ranks", type=int, default=1, help="of the learner, at ZeRO-2 when there are several")
    parser.add_argument("--keep", type=Path, help="a new folder for the run and its logs; by default they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        digits = draw_problems(folder / "digits")
        faults = draw(options.faults, options.seed)
        shape: dict[str, Any] = {
            "learner_processes": options.ranks,
            "per_device_batch_size": 4 * PROMPTS_PER_STEP // options.ranks,
            "zero_stage": 0 if options.ranks == 1 else 2,
        }
        campaign = run_campaign(folder / "stack", digits, faults, seed=options.seed, **shape)
    print(table(campaign))
    return 1 if campaign.broken else 0


if __name__ == "__main__":
    sys.exit(main())
