"""`python -m tests.chaos`: many faults on one run, and a table of them. Exit code 1 when a promise fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import draw_problems, run_campaign, table
from tests.chaos.faults import draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=54, help="how many; every kind comes once before any comes twice")
    parser.add_argument("--seed", type=int, default=0, help="of their order and of random moments")
    parser.add_argument("--keep", type=Path, help="a new folder for the run and its logs; by default they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        digits = draw_problems(folder / "digits")
        campaign = run_campaign(folder / "stack", digits, draw(options.faults, options.seed), seed=options.seed)
    print(table(campaign))
    assert campaign.proof is not None
    return 0 if campaign.proof.holds and not campaign.unbalanced else 1


if __name__ == "__main__":
    sys.exit(main())
