"""`python -m mmr1_rollout_server`: read the configuration, check what can be checked, then start. Imports no engine."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys

from mmr1.config import load_config
from mmr1.lifecycle import run_command
from mmr1.telemetry import configure_logging, works_for
from mmr1.tracing import start_tracing, stop_tracing
from mmr1_rollout_server import environment, preflight


def main(argv: list[str] | None = None) -> int:
    """Run one server; returns its exit code: 0 told to stop, 2 configuration, else a failure."""
    parser = argparse.ArgumentParser(prog="python -m mmr1_rollout_server", description=__doc__)
    parser.add_argument("--config", required=True, help="the run's resolved configuration (YAML)")
    parser.add_argument(
        "--server-id", default=socket.gethostname(), help="this server's name within the run; default: the machine's"
    )
    parser.add_argument("--port", type=int, help="gRPC; default: rollout_port")
    parser.add_argument("--metrics-port", type=int, help="Prometheus; default: the port after learner_metrics_port")
    parser.add_argument(
        "--serve-base-weights",
        action="store_true",
        help="for evaluation: answer calls with the weights of the model's folder; no queue, no learner",
    )
    arguments = parser.parse_args(argv)

    configure_logging(arguments.server_id)
    config = load_config(arguments.config)
    port = config.rollout_port if arguments.port is None else arguments.port
    metrics_port = config.learner_metrics_port + 1 if arguments.metrics_port is None else arguments.metrics_port
    works_for(config.run)
    start_tracing("mmr1-rollout-server", arguments.server_id)
    preflight.check(config, arguments.server_id, port, metrics_port)
    environment.apply(config)

    from mmr1_rollout_server.server import Server

    async def serve() -> int:
        server = Server(config, arguments.server_id, port, metrics_port)
        server.serves_base = arguments.serve_base_weights
        return await server.run()

    return asyncio.run(serve())


if __name__ == "__main__":
    exit_code = run_command(main)
    stop_tracing()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # a thread that still loads the engine would keep the interpreter from ending
