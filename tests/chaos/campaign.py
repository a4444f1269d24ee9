"""One run under many faults, from its start to the proof that nothing was lost; and a table of what each cost."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmr1.data_cli import main as data_main
from tests.chaos.faults import Fault
from tests.chaos.proof import Proof, history, moments, prove
from tests.chaos.stack import Blow, EndedError, Stack, read_lines

FINISH_SECONDS = 400.0
OWN_WORDS = "the ledger does not balance"  # of a run whose accounts are broken
LAST_STEPS = 2  # after the last fault, in a life of their own


@dataclass
class Campaign:
    """What came of it. `blows` are in the order of time; `lost` and `twice` count places at the blow before it."""

    blows: list[Blow] = field(default_factory=list)
    lost: Counter[Blow] = field(default_factory=Counter)
    twice: Counter[Blow] = field(default_factory=Counter)
    proof: Proof | None = None
    ended: bool = False  # by itself, because its accounts did not balance
    unbalanced: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> set[str]:
        """Which promises, by name. Empty: all hold."""
        assert self.proof is not None or self.ended
        found = set(self.proof.broken) if self.proof is not None else set()
        return found | ({"unbalanced"} if self.unbalanced or self.ended else set())

    def conclude(self, diary: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
        """From the diary, proof.jsonl and the last accounts; each failure goes to the blow that it came after."""
        self.proof = prove(diary, self.ledger, own)
        for counter, times in zip((self.lost, self.twice), moments(self.proof, diary), strict=True):
            for time_ in times:
                counter[max((blow for blow in self.blows if blow.time <= time_), key=_time, default=self.blows[0])] += 1


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
        EndedError: the run ended by itself, or not with exit code 0 when its steps were done.
    """
    campaign = Campaign()
    with Stack(folder, digits, seed, mutations, **options) as stack:
        try:
            _strike(campaign, stack, faults, say)
        except EndedError:
            # Whose accounts are broken on purpose may see it before anybody else does, and end.
            if not (mutations and OWN_WORDS in stack.said):
                raise
            campaign.ended = True
        campaign.unbalanced, campaign.looks = stack.unbalanced, stack.looks
    return campaign


def _strike(campaign: Campaign, stack: Stack, faults: Sequence[Fault], say: Callable[[str], None]) -> None:
    began = time.monotonic()
    stack.start()
    for fault in faults:
        blow = stack.inflict(fault)
        campaign.blows.append(blow)
        say(f"{time.monotonic() - began:7.1f} s  {blow}")
    code = stack.stop()
    assert code == 143, f"stopped with {code}\n{stack.said}"
    stack.start(num_steps=max(history(stack.diary)) + LAST_STEPS)
    code = stack.wait(FINISH_SECONDS)
    if code != 0:
        raise EndedError(f"ended with {code}\n{stack.said}")
    campaign.ledger = json.loads((stack.run_dir / "ledger.json").read_text())
    campaign.conclude(stack.diary, read_lines(stack.run_dir / "proof.jsonl"))


def table(campaign: Campaign) -> str:
    """Markdown: a line a kind of fault, and what the whole run proved."""
    proof = campaign.proof
    assert proof is not None
    lines = [
        "| fault | phase | times | seconds to the next step: median | worst | after it woke: worst | lost | twice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds: dict[Fault, list[Blow]] = {}
    for blow in campaign.blows:
        kinds.setdefault(blow.fault, []).append(blow)
    for fault, blows in sorted(kinds.items(), key=lambda item: str(item[0])):
        what, _, phase = str(fault).partition(", ")
        seconds = [blow.seconds for blow in blows]
        awake = [blow.awake_seconds for blow in blows if blow.awake_seconds is not None]
        cells = [what, phase, str(len(blows)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
        cells.append(f"{max(awake):.1f}" if awake else "")
        cells += [str(sum(counter[blow] for blow in blows)) for counter in (campaign.lost, campaign.twice)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"**{len(campaign.blows)} faults in {proof.num_steps} optimizer steps. Groups trained {proof.num_trained}, "
        f"lost {len(proof.lost)}, trained twice {len(proof.twice)}**; versions served that were not what was sent "
        f"{len(proof.spoiled)}; the ledger was looked at {campaign.looks:,} times and did not balance "
        f"{len(campaign.unbalanced)} times. Dropped: {_counts(campaign.ledger['dropped'])}; dead: "
        f"{_counts(campaign.ledger['dead'])}. Accounts that are not the diary's: {len(proof.miscounted)}.",
        *(f"- {words}" for words in proof.miscounted),
    ]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} as {reason}" for reason, count in sorted(counts.items())) or "none"


def _time(blow: Blow) -> float:
    return blow.time
