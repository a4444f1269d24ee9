"""One run under many faults, from its start to the proof that nothing was lost; and a table of what each cost."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmr1.data_cli import main as data_main
from tests.chaos.faults import Fault
from tests.chaos.proof import Proof, history, prove
from tests.chaos.stack import Stack

FINISH_SECONDS = 400.0
LAST_STEPS = 2  # after the last fault, in a life of their own


@dataclass
class Campaign:
    """What came of it. `seconds[fault]` has one number for each time it was inflicted."""

    seconds: dict[Fault, list[float]] = field(default_factory=dict)
    proof: Proof | None = None
    unbalanced: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(map(len, self.seconds.values()))


def draw_problems(folder: Path) -> Path:
    """A few hundred counting problems."""
    assert data_main(["digits", "--out", str(folder), "--num-train", "256", "--num-eval", "16"]) == 0
    return folder


def run_campaign(
    folder: Path,
    digits: Path,
    faults: Sequence[Fault],
    *,
    seed: int = 0,
    mutations: tuple[str, ...] = (),
    say: Callable[[str], None] = print,
    **options: Any,
) -> Campaign:
    """Inflict `faults` one after the other, each once the run has taken a step after the one before; then let it end.

    Args:
        mutations: guarantees to break, by the agent's names for them.
        options: of the run, over those of `make_options`.

    Raises:
        HungError: no optimizer step came after a fault.
        AssertionError: the run ended by itself, or not with exit code 0 when its steps were done.
    """
    campaign, began = Campaign(), time.monotonic()
    with Stack(folder, digits, seed, mutations, **options) as stack:
        stack.start()
        for fault in faults:
            seconds = stack.inflict(fault)
            campaign.seconds.setdefault(fault, []).append(seconds)
            say(f"{time.monotonic() - began:7.1f} s  {fault}: next step after {seconds:.1f} s")
        code = stack.stop()
        assert code == 143, f"stopped with {code}\n{stack.said}"
        stack.start(num_steps=max(history(stack.diary)) + LAST_STEPS)
        code = stack.wait(FINISH_SECONDS)
        assert code == 0, f"ended with {code}\n{stack.said}"
        campaign.ledger = json.loads((stack.run_dir / "ledger.json").read_text())
        campaign.proof = prove(stack.diary, campaign.ledger)
        campaign.unbalanced, campaign.looks = stack.unbalanced, stack.looks
    return campaign


def table(campaign: Campaign) -> str:
    """Markdown: a line a kind of fault, and what the whole run proved."""
    proof = campaign.proof
    assert proof is not None
    lines = [
        "| fault | phase | times | seconds to the next optimizer step: median | worst |",
        "|---|---|---|---|---|",
    ]
    for fault, seconds in sorted(campaign.seconds.items(), key=lambda item: str(item[0])):
        what, _, phase = str(fault).partition(", ")
        lines.append(f"| {what} | {phase} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    lines += [
        "",
        f"{campaign.num_faults} faults in {proof.num_steps} optimizer steps. Groups trained {proof.num_trained}, lost "
        f"{proof.lost}, trained twice {len(proof.twice)}; versions served that were not what was sent "
        f"{len(proof.spoiled)}; the ledger was looked at {campaign.looks:,} times and did not balance "
        f"{len(campaign.unbalanced)} times. Dropped: {campaign.ledger['dropped'] or 'none'}; dead: "
        f"{campaign.ledger['dead'] or 'none'}.",
    ]
    return "\n".join(lines)
