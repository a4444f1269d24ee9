"""A learner that nobody launched: it is a group of one, and needs no variable of a launcher."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_rank_alone_needs_no_launcher() -> None:
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    code = (
        "from mmr1_learner.ranks import join_ranks, leave_ranks\n"
        "ranks = join_ranks()\n"
        "print(ranks.rank, ranks.world_size)\n"
        "leave_ranks()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 1"
