"""Can the run's trackers be used? Asked before anything starts; imports none of them.

metrics.jsonl, evaluations.jsonl and completions.jsonl are always written; trackers come on top.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from mmr1.errors import ConfigurationError

_OFFLINE = ("offline", "disabled", "dryrun")
_WANDB_HOST = "api.wandb.ai"


def check_trackers(trackers: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Each named tracker's package is installed, and wandb has a key or need not have one.

    Raises:
        ConfigurationError: at the first that cannot be used, with the remedy.
    """
    environment = os.environ if environment is None else environment
    for name in trackers:
        if find_spec(name) is None:
            raise ConfigurationError(
                f"option 'trackers': the package {name} is not installed; pip install {name}, or leave it out"
            )
    online = environment.get("WANDB_MODE", "online") not in _OFFLINE
    if "wandb" in trackers and online and not _has_key(environment):
        raise ConfigurationError(
            "option 'trackers': wandb has no key; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to "
            "keep everything in the run's folder"
        )


def _has_key(environment: Mapping[str, str]) -> bool:
    if environment.get("WANDB_API_KEY"):
        return True
    path = Path(environment.get("NETRC") or Path(environment.get("HOME", "~")).expanduser() / ".netrc")
    host = environment.get("WANDB_BASE_URL", _WANDB_HOST).removeprefix("https://").removeprefix("http://")
    try:
        return netrc.netrc(path).authenticators(host.partition("/")[0].partition(":")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


__all__ = ["check_trackers"]
