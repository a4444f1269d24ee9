"""Before anything else starts: random secrets, each for those who need it, and the problems of the demonstration.

Run by docker-compose.yml in the learner's image. What exists stays, so it may run at every start. It prints no secret.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import yaml

VOLUMES = Path("/volumes")
RULES = Path(__file__).with_name("users.acl")
CONFIG = Path("/etc/mmr1/run.yaml")
DATA = Path("data")  # below /srv/mmr1, where relative paths of the run's file begin
DIGITS = DATA / "digits"


def main() -> int:
    """Returns the exit code. What others wait for comes last: Redis and the reward server for their files, the learner
    and rollout servers for the mark that says for which run's file the problems are there.
    """
    if code := _draw_problems():
        return code
    passwords = {user: _secret(VOLUMES / user / "redis.password") for user in ("learner", "rollout")}
    digests = {user: hashlib.sha256(password.encode()).hexdigest() for user, password in passwords.items()}
    _shared("rollout.token", "rollout", "learner")
    key = _shared("reward.key", "learner", "rollout")
    _write(VOLUMES / "reward" / "api.keys", key + "\n")
    # For Redis, which is another user: digests of what nobody could guess are no secret.
    _write(VOLUMES / "redis" / "users.acl", _with_digests(RULES.read_text(), digests), mode=0o644)
    _write(DATA / ".prepared", f"{hashlib.sha256(CONFIG.read_bytes()).hexdigest()}  -\n", mode=0o644)  # as sha256sum
    return 0


def _with_digests(rules: str, digests: dict[str, str]) -> str:
    for user, digest in digests.items():
        rules = rules.replace(f"#{{{user}}}", f"#{digest}")
    return rules


def _shared(name: str, first: str, second: str) -> str:
    secret = _secret(VOLUMES / first / name)
    _write(VOLUMES / second / name, secret + "\n")
    return secret


def _secret(path: Path) -> str:
    if not path.exists():
        _write(path, secrets.token_hex(32) + "\n")
    return path.read_text().strip()


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    aside.replace(path)


def _draw_problems() -> int:
    """Those that the run's file names below data/digits/TASK, if they are not there. Others are the user's to bring."""
    train_file = Path(str((yaml.safe_load(CONFIG.read_text()) or {}).get("train_file", "")))
    if train_file.parent.parent != DIGITS or train_file.exists():
        return 0
    command = ["mmr1", "data", "digits", "--task", train_file.parent.name, "--out", str(train_file.parent)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
