"""`mmr1 probe SERVICE`: does it answer, and is it ready? For health checks of containers, which run a command inside.

Exit code 0 means ready, 1 not yet. It shows no token: health needs none (docs/security.md).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmr1.lifecycle import CommandParser
from mmr1.local.readiness import ACCEPTS_WEIGHTS, SERVES, Probe, grpc_serving, http_ready

if TYPE_CHECKING:  # half a second more, which a check that runs every few seconds need not take
    from mmr1.rollout_access import RolloutAccess

_NOT_READY = 1


def main(argv: Sequence[str]) -> int:
    """Returns 0 when it is ready and 1 when it is not. Raises ConfigurationError for a wrong option or file."""
    parser = CommandParser(prog="mmr1 probe", description="Ask a service whether it is ready.", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, what in (
        ("rollout", "a rollout server that accepts weights"),
        ("serving", "a rollout server that holds the run's weights"),
        ("metrics", "a program that serves its metrics: the learner"),
    ):
        one = kinds.add_parser(kind, help=what)
        one.add_argument("address", metavar="HOST:PORT")
        if kind != "metrics":
            one.add_argument("--config", type=Path, help="the run's YAML file, where rollout servers speak TLS")
    arguments = parser.parse_args(argv)
    ready = asyncio.run(_answer(_probe(arguments)))
    print("ready" if ready else "not ready", file=sys.stdout if ready else sys.stderr)
    return 0 if ready else _NOT_READY


async def _answer(probe: Probe) -> bool:
    return await probe()


def _probe(arguments: argparse.Namespace) -> Probe:
    if arguments.kind == "metrics":
        return http_ready(f"http://{arguments.address}/metrics")
    service = SERVES if arguments.kind == "serving" else ACCEPTS_WEIGHTS
    access = _access(arguments.config) if arguments.config else None
    return grpc_serving(arguments.address, service, access)


def _access(path: Path) -> RolloutAccess:
    """TLS alone: whoever asks for health is not let in further, and need not read the token."""
    from mmr1.config import load_config
    from mmr1.rollout_access import RolloutAccess

    return RolloutAccess.from_config(load_config(path).model_copy(update={"rollout_token_file": None}), {})
