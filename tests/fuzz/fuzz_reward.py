"""Searches, guided by coverage (atheris), for inputs that break what properties.py says. See scripts/fuzz_reward.sh.

    fuzz_reward.py [--seconds 240] [--targets parsers tasks ...]     one process for each target, one after another
    fuzz_reward.py --replay runs/fuzz/tasks-0123456789               one input again, without atheris

What was found is made small, printed and kept in runs/fuzz, beside the inputs that reached new code: the next run
begins with these. Exit status 1 when anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import re
import subprocess
import sys
from pathlib import Path

# The share of the time: some have more to search.
_SHARES = {"parsers": 2, "tasks": 4, "peers": 3, "frames": 1, "mathematics": 2}
_FOLDER = Path("runs/fuzz")
_NUM_SEEDS, _SEED_BYTES, _MAX_BYTES = 64, 200, 1000
# What libFuzzer says of its progress.
_CHATTER = re.compile(r'#|INFO:|Done|WARNING: Failed to find function|"\\\\|".* # Uses')
_SLOWDOWN = 4.0  # of code whose coverage is measured
_HANG_SECONDS = 120  # of one input, by the clock


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the reward server.")
    parser.add_argument("--seconds", type=int, default=240, help="for all targets together")
    parser.add_argument("--targets", nargs="+", choices=_SHARES, default=list(_SHARES))
    parser.add_argument("--replay", type=Path, help="an input that was kept")
    parser.add_argument("--only", choices=_SHARES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    if options.only is not None:
        _search(options.only, options.seconds)
    found = [_run(target, options.seconds, options.targets) for target in options.targets]
    print(f"fuzz: {sum(found)} findings")
    return 1 if any(found) else 0


def _run(target: str, seconds: int, targets: list[str]) -> int:
    """How many findings a process of its own makes."""
    share = max(seconds * _SHARES[target] // sum(_SHARES[one] for one in targets), 5)
    command = [sys.executable, __file__, "--only", target, "--seconds", str(share)]
    num_found, runs = 0, "nothing"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            tail = [*tail[-30:], line]
            num_found += line.startswith("FOUND ")
            if done := re.match(r"Done (\d+) runs in (\d+) second", line):
                runs = f"{done[1]} inputs, {int(done[1]) // max(int(done[2]), 1)} a second"
            elif not _CHATTER.match(line):
                print(line, end="", flush=True)
    if process.returncode != 0:
        num_found += 1
        print(f"FOUND {target}: the process ended with {process.returncode}:\n{''.join(tail)}")
    print(f"fuzz: {target}: {runs}, {num_found} findings", flush=True)
    return num_found


def _search(target: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["mmr1_reward_server"]):
        from tests.fuzz import properties
        from tests.fuzz.searching import attempt, checks, smallest

        check = checks()[target]
    _prepare(target)
    properties.slowdown = _SLOWDOWN
    known: set[str] = set()

    def one(data: bytes) -> None:
        failure = attempt(check, data)
        if failure is None or failure.place in known:
            return
        known.add(failure.place)
        small, failure = smallest(check, data, failure)
        path = _FOLDER / f"{target}-{hashlib.sha256(small).hexdigest()[:10]}"
        path.write_bytes(small)
        print(f"\nFOUND {failure.place}\n{failure.shown()}\nagain: make fuzz REPLAY={path}\n", flush=True)

    corpus = _FOLDER / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for seed in range(_NUM_SEEDS):
            (corpus / f"seed-{seed}").write_bytes(random.Random(seed).randbytes(_SEED_BYTES))
    limits = (
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_BYTES}",
        f"-timeout={_HANG_SECONDS}",
        "-rss_limit_mb=4096",
        "-len_control=0",
        "-report_slow_units=999",
    )
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={_FOLDER}/{target}-", str(corpus)], one)
    atheris.Fuzz()


def _replay(path: Path) -> int:
    from tests.fuzz.searching import attempt, checks

    target = path.name.partition("-")[0]
    _prepare(target)
    failure = attempt(checks()[target], path.read_bytes())
    print("nothing is wrong" if failure is None else f"{failure.place}\n{failure.shown()}")
    return 0 if failure is None else 1


def _prepare(target: str) -> None:
    # What fails is told by the check. math-verify has a target of its own: it takes longer than any of ours may.
    logging.disable(logging.CRITICAL)
    if target != "mathematics":
        sys.modules["math_verify"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
