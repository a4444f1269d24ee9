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
    """Returns the exit code.

    Each waits for no more than it needs: the reward server for its file, Redis for a mark that its users are those of
    this checkout's rules, rollout servers for one that their secrets and the folder of images are there, the learner
    for one that the problems are. The last two say for which run's file. An engine loads while problems are drawn.
    """
    mark = _digest_line(CONFIG)
    problems = _missing_problems()
    if problems is not None:
        problems.mkdir(parents=True, exist_ok=True)
    passwords = {user: _secret(VOLUMES / user / "redis.password") for user in ("learner", "rollout")}
    digests = {user: hashlib.sha256(password.encode()).hexdigest() for user, password in passwords.items()}
    _shared("rollout.token", "rollout", "learner")
    key = _shared("reward.key", "learner", "rollout")
    _write(VOLUMES / "reward" / "api.keys", key + "\n")
    # For Redis, which is another user: digests of what nobody could guess are no secret.
    _write(VOLUMES / "redis" / "users.acl", _with_digests(RULES.read_text(), digests), mode=0o644)
    _write(VOLUMES / "redis" / ".rules", _digest_line(RULES), mode=0o644)
    _write(VOLUMES / "rollout" / ".prepared", mark)
    if problems is not None:
        command = ["mmr1", "data", "digits", "--task", problems.name, "--out", str(problems)]
        if code := subprocess.run(command, check=False).returncode:
            return code
    _write(DATA / ".prepared", mark, mode=0o644)
    return 0


def _digest_line(path: Path) -> str:
    """As sha256sum prints it."""
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  -\n"


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


def _missing_problems() -> Path | None:
    """The folder data/digits/TASK that the run's file names, if nothing is there. Others are the user's to bring."""
    train_file = Path(str((yaml.safe_load(CONFIG.read_text()) or {}).get("train_file", "")))
    return train_file.parent if train_file.parent.parent == DIGITS and not train_file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
