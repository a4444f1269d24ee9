"""`mmr1 ledger RUN`: a run's accounts in Redis, for people and, with --json, for programs. Changes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from mmr1.credentials import PASSWORD_VARIABLE, holds_password
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.preflight import check_redis
from mmr1.redis_access import RedisAccess
from mmr1.streams.accounts import STATES, Accounts, DeadPrompt, read_accounts, read_dead, run_names

VERSIONS_SHOWN = 10  # in the table; --json has all


def main(argv: Sequence[str]) -> int:
    """Returns 0 when the accounts balance, 1 when they do not.

    Raises:
        ConfigurationError: there is no such Redis, or it knows no such run.
    """
    parser = CommandParser(
        prog="mmr1 ledger", description="Print a run's accounts; exit code 1 when they do not balance."
    )
    parser.add_argument("run", help="the run's name (its `run` option)")
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("MMR1_REDIS_URL", "redis://127.0.0.1:6390/0"),
        help="or MMR1_REDIS_URL; its password belongs in MMR1_REDIS_PASSWORD",
    )
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument("--dead", action="store_true", help="list the dead prompts, with reason and last error")
    options = parser.parse_args(argv)
    if any(map(holds_password, argv)):
        raise ConfigurationError(f"--redis-url holds a password, which everybody can list; set {PASSWORD_VARIABLE}")
    access = RedisAccess.from_environment(options.redis_url)
    check_redis(access)
    try:
        with access.client() as redis:
            accounts = read_accounts(redis, options.run)
            if not accounts.known:
                raise ConfigurationError(_unknown(options.run, access.shown, _names(redis)))
            dead = list(read_dead(redis, options.run)) if options.dead else []
    except RedisError as error:  # gone meanwhile, still loading its file, or without permission
        refusal = access.refusal(error)
        raise refusal or ConfigurationError(
            f"redis_url {access.shown}: {' '.join(str(error).split())}; try again when it answers"
        ) from None
    if options.json:
        print(json.dumps(as_json(options.run, accounts, dead if options.dead else None), indent=2))
    else:
        print("\n".join([*ledger_lines(options.run, accounts), *version_lines(accounts), *dead_lines(dead)]))
    return 0 if accounts.ledger.balanced else 1


def as_json(run: str, accounts: Accounts, dead: Iterable[DeadPrompt] | None) -> dict[str, object]:
    listed = {} if dead is None else {"dead_prompts": [_dead_as_dict(prompt) for prompt in dead]}
    return {"run": run, **accounts.as_dict(), **listed}


def ledger_lines(run: str, accounts: Accounts) -> list[str]:
    """The equation's terms, by reason, and whether it holds."""
    ledger = accounts.ledger
    dropped, dead = sum(ledger.dropped.values()), sum(ledger.dead.values())
    num_ready = ledger.num_groups - ledger.num_applied
    states = f"{ledger.num_prompts} prompts, {num_ready} ready, {ledger.num_applied} applied"
    ages = (accounts.oldest_prompt_seconds, "prompt"), (accounts.oldest_group_seconds, "group")
    waits = "".join(f"; oldest {what} {seconds:.0f} s" for seconds, what in ages if seconds is not None)
    rows = (
        ("fed", ledger.fed, ""),
        ("trained", ledger.trained, ""),
        ("dropped", dropped, _reasons(ledger.dropped)),
        ("dead", dead, _reasons(ledger.dead)),
        ("pending", ledger.pending, states + waits),
    )
    sign, verdict = ("=", "balanced") if ledger.balanced else ("!=", "NOT BALANCED")
    return [
        f"run {run}, policy version {ledger.incarnation}.{ledger.version_number}",
        *(f"  {name:<8}{count:>10}   {detail}".rstrip() for name, count, detail in rows),
        f"{verdict}: {ledger.fed} {sign} {ledger.trained} + {dropped} + {dead} + {ledger.pending}",
    ]


def version_lines(accounts: Accounts) -> list[str]:
    """The newest versions, one a line, and all the others in one."""
    if not accounts.by_version:
        return []
    newest = list(accounts.by_version.items())[-VERSIONS_SHOWN:]
    others = list(accounts.by_version.values())[:-VERSIONS_SHOWN]
    rows = [(str(version), counts) for version, counts in newest]
    if others:
        rows.insert(0, ("earlier", {state: sum(counts[state] for counts in others) for state in STATES}))
    header = "sampled by" + "".join(f"{state:>10}" for state in STATES)
    return ["", header, *(f"{name:<10}" + "".join(f"{counts[state]:>10}" for state in STATES) for name, counts in rows)]


def dead_lines(dead: Sequence[DeadPrompt]) -> list[str]:
    """One line a dead prompt: place/attempt, when, why."""
    lines = []
    for prompt in dead:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(prompt.time))
        lines.append(f"{prompt.id}  {when} UTC  {prompt.reason}: {' '.join(prompt.detail.split())}".rstrip(": "))
    return ["", *lines] if lines else []


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def _dead_as_dict(prompt: DeadPrompt) -> dict[str, object]:
    return {"id": prompt.id, "reason": prompt.reason, "detail": prompt.detail, "time": prompt.time}


def _names(redis: Redis) -> list[str] | None:
    """The runs that there are; None for a user who may not look for keys, as a run's own users may not."""
    try:
        return run_names(redis)
    except NoPermissionError:
        return None


def _unknown(run: str, shown: str, names: Sequence[str] | None) -> str:
    there = f"it holds {', '.join(names)}" if names else "it holds none"
    if names is None:
        there = "this user may not ask which there are"
    return f"run {run!r} is not in the Redis at {shown}; {there}; give the run's name and --redis-url"
