"""A whole stack of small real programs: order, end, interruption and what is left behind. Redis is the real one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mmr1.config import RunConfig, load_config
from mmr1.errors import ConfigurationError
from mmr1.local import service as service_module
from mmr1.local.logs import MergedLog
from mmr1.local.plan import Plan, plan
from mmr1.local.ports import free_port, require_free
from mmr1.local.readiness import grpc_serving, http_ready
from mmr1.local.service import ProcessSpec, ServiceSpec
from mmr1.local.supervisor import supervise
from mmr1.redis_access import RedisAccess
from tests.unit.local.processes import wait_until_dead

Program = Callable[..., ProcessSpec]

REWARD = """
import http.server, os, pathlib, sys
pathlib.Path(sys.argv[1], "order").open("a").write("reward\\n")
print(os.getpid(), flush=True)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", {port}), Ready).serve_forever()
"""

ROLLOUT = """
import os, signal, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), engine.pid, flush=True)
server = grpc.server(ThreadPoolExecutor(2))
servicer = health.HealthServicer()
servicer.set("mmr1.v1.RolloutService/weights", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
server.add_insecure_port("127.0.0.1:{port}")
server.start()
server.wait_for_termination()
"""

# Works until the test says that it has seen enough: on a busy machine no number of seconds would do.
LEARNER = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], "order").open("a").write("learner\\n")
print(os.getpid(), flush=True)
while not pathlib.Path(sys.argv[1], "enough").exists():
    time.sleep(0.02)
sys.exit({code})
"""


class Stack:
    """A configuration on free ports and the plan for it, with small programs in the places of the three services."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.ports = [free_port() for _ in range(3)]
        redis_port, reward_port, rollout_port = self.ports
        self.config: RunConfig = load_config(
            None,
            [
                *("--model", "none", "--train_file", "none.json", "--num_steps", "1", "--per_device_batch_size", "8"),
                *("--run_dir", str(folder / "run"), "--redis_port", str(redis_port), "--max_restarts", "1"),
            ],
        )
        (self.config.run_dir / "redis").mkdir(parents=True)
        self._program = program
        self._enough = folder / "enough"
        self.reward = ServiceSpec(
            "reward",
            (program("reward", REWARD.format(port=reward_port)),),
            http_ready(f"http://127.0.0.1:{reward_port}/"),
        )
        self.rollout = ServiceSpec(
            "rollout-0",
            (program("rollout-0", ROLLOUT.format(port=rollout_port)),),
            grpc_serving(f"127.0.0.1:{rollout_port}"),
        )

    def plan(self, learner_code: int = 0) -> Plan:
        learner = self._program("learner", LEARNER.format(code=learner_code))
        redis = plan(self.config).redis
        return Plan(redis, self.reward, (self.rollout,), ServiceSpec("learner", (learner,), finishes=True))

    def end_learner(self) -> None:
        """The learner, running or yet to start, exits with its code."""
        self._enough.touch()

    def pids(self, log: MergedLog) -> list[int]:
        names = ("reward", "rollout-0", "learner")
        return [int(word) for name in names for line in log.tail(name) for word in line.split() if word.isdigit()]

    def require_nothing_left(self, log: MergedLog) -> None:
        wait_until_dead(self.pids(log))
        for port in self.ports:
            require_free_number(port)


def require_free_number(number: int) -> None:
    from mmr1.local.ports import Port

    require_free([Port(number, "127.0.0.1", "some_port", "a test")])


@pytest.fixture
def stack(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(service_module, "FIRST_DELAY_SECONDS", 0.05)
    return Stack(program, tmp_path)


async def until(log: MergedLog, name: str, num_lines: int = 1) -> None:
    async with asyncio.timeout(60):
        while len(log.tail(name)) < num_lines:
            await asyncio.sleep(0.02)


async def until_all_run(log: MergedLog) -> None:
    """Rollout servers load while the learner starts, so any of the three may be the last to have printed its ids."""
    for name in ("reward", "rollout-0", "learner"):
        await until(log, name)


async def test_the_learners_end_is_the_runs_end(stack: Stack, log: MergedLog, tmp_path: Path) -> None:
    running = asyncio.create_task(supervise(stack.config, stack.plan(), log))
    await until_all_run(log)
    stack.end_learner()
    assert await running == 0
    assert (tmp_path / "order").read_text().split() == ["reward", "learner"]
    assert len(stack.pids(log)) == 4
    stack.require_nothing_left(log)
    ledger = json.loads((stack.config.run_dir / "ledger.json").read_text())
    assert ledger == {"fed": 0, "trained": 0, "dropped": {}, "dead": {}, "pending": 0, "balanced": True}
    assert list((stack.config.run_dir / "redis").rglob("*.aof")), "the queue was not durable"


async def test_a_run_whose_accounts_do_not_balance_is_no_success(
    stack: Stack, log: MergedLog, screen: io.StringIO
) -> None:
    """SEMANTICS 1: fed = trained + dropped + dead + pending can fail, and is checked."""
    running = asyncio.create_task(supervise(stack.config, stack.plan(), log))
    await until_all_run(log)
    with RedisAccess.from_config(stack.config).client() as redis:
        redis.hincrby(f"mmr1:{{{stack.config.run}}}:ledger", "fed", 1)
    stack.end_learner()
    assert await running == 1
    assert "error: the ledger does not balance: 1 fed, but 0 trained" in screen.getvalue()
    stack.require_nothing_left(log)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_stops_everything(stack: Stack, log: MergedLog, number: signal.Signals, code: int) -> None:
    running = asyncio.create_task(supervise(stack.config, stack.plan(), log))
    await until_all_run(log)
    os.kill(os.getpid(), number)
    assert await running == code
    stack.require_nothing_left(log)


async def test_a_configuration_error_stops_everything(stack: Stack, log: MergedLog) -> None:
    stack.end_learner()
    with pytest.raises(ConfigurationError, match=r"learner exited with code 2: .*its log: .*learner\.log"):
        await supervise(stack.config, stack.plan(learner_code=2), log)
    stack.require_nothing_left(log)


async def test_a_learner_that_keeps_failing_ends_the_run(stack: Stack, log: MergedLog, screen: io.StringIO) -> None:
    stack.end_learner()
    assert await supervise(stack.config, stack.plan(learner_code=5), log) == 1
    assert "learner failed 2 times (max_restarts 1); last: learner exited with code 5" in screen.getvalue()
    stack.require_nothing_left(log)


async def test_a_killed_service_comes_back_and_the_run_goes_on(
    stack: Stack, log: MergedLog, screen: io.StringIO
) -> None:
    running = asyncio.create_task(supervise(stack.config, stack.plan(), log))
    await until_all_run(log)
    first_server, first_engine = map(int, log.tail("rollout-0")[0].split())
    os.kill(first_server, signal.SIGKILL)
    await until(log, "rollout-0", num_lines=2)
    wait_until_dead([first_server, first_engine])
    stack.end_learner()
    assert await running == 0
    assert "rollout-0 was ended by signal 9; restart 1 of 1" in screen.getvalue()
    stack.require_nothing_left(log)
