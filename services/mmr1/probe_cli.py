"""`mmr1 probe SERVICE`: does it answer, and is it ready? For health checks of containers, which run a command inside.

Exit code 0 means ready, 1 not yet. It shows no token: health needs none (docs/security.md).
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmr1.lifecycle import CommandParser
from mmr1.local.readiness import ACCEPTS_WEIGHTS, LIVES, SERVES, grpc_serving, http_ready

if TYPE_CHECKING:  # half a second more, which a check that runs every few seconds need not take
    from mmr1.config import RunConfig
    from mmr1.rollout_access import RolloutAccess

_NOT_READY = 1
_SECONDS = 8.0  # the checks of the images and manifests allow ten, and starting takes one
_SERVICES = {"rollout": ACCEPTS_WEIGHTS, "serving": SERVES, "alive": LIVES}


def main(argv: Sequence[str]) -> int:
    """Returns 0 when it is ready and 1 when it is not. Raises ConfigurationError for a wrong option or file."""
    parser = CommandParser(prog="mmr1 probe", description="Ask a service whether it is ready.", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, what in (
        ("rollout", "a rollout server that accepts weights"),
        ("serving", "a rollout server that holds the run's weights"),
        ("alive", "a rollout server that answers, whatever it holds"),
        ("metrics", "a program that serves its metrics: the learner"),
    ):
        one = kinds.add_parser(kind, help=what)
        one.add_argument("address", metavar="HOST:PORT")
        one.add_argument(
            "--timeout", type=_seconds, default=_SECONDS, help="seconds to answer in, all told; default: 8"
        )
        if kind != "metrics":
            one.add_argument("--config", type=Path, help="the run's YAML file, where rollout servers may speak TLS")
    arguments = parser.parse_args(argv)
    fault = asyncio.run(_metrics(arguments)) if arguments.kind == "metrics" else _rollout(arguments)
    if fault is None:
        print("ready")
        return 0
    print("not ready" + (f": {fault}" if fault else ""), file=sys.stderr)
    return _NOT_READY


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: give seconds, above 0 and at most 3600")
    return seconds


async def _metrics(arguments: argparse.Namespace) -> str | None:
    return None if await http_ready(f"http://{arguments.address}/metrics", arguments.timeout)() else ""


def _rollout(arguments: argparse.Namespace) -> str | None:
    """None: it is ready. Else why not, as far as TLS is why."""
    host, _, port = arguments.address.rpartition(":")
    ways = _ways_in(arguments.config, host) if arguments.config and _may_speak_tls(arguments.config) else [None]

    async def is_ready(access: RolloutAccess | None) -> bool:
        seconds = arguments.timeout / len(ways)
        return await grpc_serving(arguments.address, _SERVICES[arguments.kind], access, seconds)()

    if any(asyncio.run(is_ready(access)) for access in ways):
        return None
    return _tls_fault(host, int(port), ways[0]) if port.isdigit() else ""


def _may_speak_tls(path: Path) -> bool:
    """False only when no option of it is set anywhere, which is known without reading the whole configuration."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return True  # whoever reads it says what is wrong
    return "rollout_tls" in text or any(name.upper().startswith("MMR1_ROLLOUT_TLS") for name in os.environ)


def _ways_in(path: Path, host: str) -> list[RolloutAccess | None]:
    """TLS alone: whoever asks for health is not let in further, and need not read the token.

    A server that is asked on its own machine is known by its certificate. That may not hold the address it is asked at,
    which others do not use.
    """
    from mmr1.config import load_config
    from mmr1.rollout_access import RolloutAccess

    config = load_config(path)
    if _is_own(config, host):
        names = [config.rollout_tls_name] if config.rollout_tls_name else [config.reachable_host, host]
        return [RolloutAccess.of_own_server(config, name) for name in dict.fromkeys(names)]
    return [RolloutAccess.from_config(config.model_copy(update={"rollout_token_file": None}), {})]


def _is_own(config: RunConfig, host: str) -> bool:
    """A certificate that cannot be read is another machine's: the configuration may be of a caller."""
    served = config.rollout_tls_cert
    return served is not None and _is_loopback(host) and os.access(served, os.R_OK)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_fault(host: str, port: int, access: RolloutAccess | None) -> str:
    from mmr1.tls import speaks_tls, tls_fault

    if access is None or access.tls is None:
        secured = speaks_tls(host, port)
        return "it speaks TLS and we do not; give --config the file that it was started with" if secured else ""
    context = access.tls.context(("h2",))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does: its own certificate may be what is trusted
    return tls_fault(host, port, context, access.name) or ""
