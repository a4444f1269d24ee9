"""`docker compose up` from nothing: the demonstration rises, whatever is struck comes back, nothing is lost or shown.

One stack, and tests that follow each other: they tell one story, in the order of this file.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.compose.stack import IMAGES, PROJECT, ROOT, Stack, health_checks, run, until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

CHECKPOINT_EVERY = 5
MORE_STEPS = 12  # of the run's second half, after `down` and `up`
FIRST_STEP_SECONDS = 90  # from `up` to the first optimizer step, images built, on two cores
BACK_SECONDS = 300


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    for image in IMAGES.values():
        run("podman", "image", "exists", image)
    path = tmp_path_factory.mktemp("compose") / "run.yaml"
    write_config(path, num_steps=1000)  # until `down`: nobody knows how many steps the tests before it take
    made = Stack(path)
    made.down("-v")
    with health_checks(made):
        try:
            yield made
        finally:
            made.down("-v")
            assert not made.containers() and PROJECT not in run("podman", "volume", "ls", "-q")


def write_config(path: Path, num_steps: int) -> None:
    """The shipped example, of another length."""
    config = yaml.safe_load((ROOT / "examples" / "counting.yaml").read_text())
    config |= {"num_steps": num_steps, "checkpoint_every": CHECKPOINT_EVERY}
    path.write_text(yaml.safe_dump(config))
    for readable, mode in ((path, 0o644), (path.parent, 0o755)):
        readable.chmod(mode)


def check_accounts(stack: Stack) -> None:
    """The ledger, asked as a person would: exit code 1 when it does not balance."""
    (learner,) = stack.containers("learner")
    assert "balanced" in run("podman", "exec", learner, "mmr1", "ledger", "demo-counting")


def test_from_up_to_the_first_optimizer_step(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    stack.compose("up", "-d", "--no-build")
    until("first step", stack.steps, stack, 300)
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\nfrom up to the first optimizer step: {seconds:.0f} s (limit {FIRST_STEP_SECONDS})")


def test_nobody_is_root_and_nothing_can_be_written(stack: Stack) -> None:
    for name in stack.containers():
        details = stack.inspect(name)
        assert details["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
        assert details["HostConfig"]["ReadonlyRootfs"], name
        assert not details["EffectiveCaps"], name
        if details["State"]["Running"]:
            status = Path(f"/proc/{details['State']['Pid']}/status").read_text()
            uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
            assert "0" not in uids, name
            assert "NoNewPrivs:\t1" in status, name


def test_nothing_is_published(stack: Stack) -> None:
    for name in stack.containers():
        assert not any((stack.inspect(name)["HostConfig"].get("PortBindings") or {}).values()), name


def test_prometheus_finds_the_services(stack: Stack) -> None:
    stack.compose("--profile", "monitoring", "up", "-d", "--no-build", "--no-recreate", "prometheus")

    def ready() -> bool:
        """It listens first, and answers 503 to every question until it has read what it kept."""
        try:
            return httpx.get("http://127.0.0.1:9090/-/ready", timeout=10).is_success
        except httpx.TransportError:
            return False

    def asked(path: str) -> Any:
        return httpx.get(f"http://127.0.0.1:9090/api/v1/{path}", timeout=10).raise_for_status().json()["data"]

    def up() -> set[str]:
        return {one["labels"]["job"] for one in asked("targets")["activeTargets"] if one["health"] == "up"}

    until("Prometheus is ready", ready, stack, BACK_SECONDS)
    until("targets up", lambda: up() == {"learner", "reward-server", "rollout-server"}, stack, BACK_SECONDS)
    rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10 and not [rule["name"] for rule in rules if rule["health"] == "err"]
    (name,) = stack.containers("prometheus")
    bound = [one["HostIp"] for ports in stack.inspect(name)["HostConfig"]["PortBindings"].values() for one in ports]
    assert bound == ["127.0.0.1"]
    run("podman", "rm", "-f", name)  # its part is done, and cores are few


def test_no_secret_is_shown(stack: Stack) -> None:
    secrets = {
        path.read_text().strip()
        for volume in ("learner", "rollout")
        for path in stack.volume(f"{volume}-secrets").iterdir()
        if path.name != ".prepared"  # a mark: the digest of the run's file
    }
    assert len(secrets) == 4 and all(len(secret) == 64 for secret in secrets)
    shown = "".join(stack.output) + "".join(json.dumps(stack.inspect(name)) for name in stack.containers())
    shown += "".join(
        stack.logs(service) for service in ("prepare", "redis", "reward-server", "rollout-server", "learner")
    )
    for image in IMAGES.values():
        shown += run("podman", "image", "inspect", image)
    for name in stack.containers():
        pid = stack.inspect(name)["State"]["Pid"]
        if pid:
            shown += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    assert not [secret for secret in secrets if secret in shown]


def test_a_second_rollout_server_takes_part(stack: Stack) -> None:
    stack.compose("up", "-d", "--no-build", "--no-recreate", "--scale", "rollout-server=2")
    until("two rollout servers", lambda: stack.running("rollout-server") == 2, stack, 60)
    names = stack.containers("rollout-server")

    def serving() -> int:
        return sum(
            run("podman", "exec", name, "mmr1", "probe", "serving", "127.0.0.1:50051", check=False).strip() == "ready"
            for name in names
        )

    until("both hold the run's weights", lambda: serving() == 2, stack, BACK_SECONDS)


@pytest.mark.parametrize("service", ["rollout-server", "reward-server", "redis", "learner"])
def test_what_is_killed_comes_back(stack: Stack, service: str) -> None:
    steps, pid = len(stack.steps()), stack.strike(service)
    until(f"{service} runs again", lambda: stack.state(service).get("Pid", 0) not in (0, pid), stack, BACK_SECONDS)
    until(f"a step after {service}", lambda: len(stack.steps()) > steps, stack, BACK_SECONDS)
    check_accounts(stack)


def test_all_are_restarted(stack: Stack) -> None:
    """As after a restart of the machine, when every program is told to end and started again, in no order."""
    until("a checkpoint", lambda: len(stack.steps()) > CHECKPOINT_EVERY, stack, BACK_SECONDS)
    steps = stack.steps()
    stack.compose("restart")
    until("a step after the restart", lambda: len(stack.steps()) > len(steps), stack, BACK_SECONDS)
    assert stack.steps()[0] == steps[0], "it began anew"
    check_accounts(stack)


def test_down_and_up_goes_on(stack: Stack) -> None:
    stack.down()
    assert not stack.containers()
    steps = len(stack.steps())
    first = stack.steps()[0]
    assert steps < 1000
    write_config(stack.config, num_steps=steps + MORE_STEPS)
    stack.compose("up", "-d", "--no-build")
    until("a step after up", lambda: len(stack.steps()) > steps, stack, BACK_SECONDS)
    assert stack.steps()[0] == first, "it began anew"


def test_the_run_ends_and_is_reported(stack: Stack) -> None:
    states: list[dict[str, Any]] = []  # one look gives both: a learner that is started again would have neither

    def ended() -> bool:
        states.append(stack.state("learner"))
        return states[-1].get("Status") == "exited"

    until("the learner ends", ended, stack, 600)
    assert states[-1]["ExitCode"] == 0, stack.logs("learner")[-3000:]
    folder = stack.volume("runs") / "demo-counting"
    found = {path.name for path in folder.iterdir()}
    assert {"report.html", "reward.png", "result.json", "model"} <= found, stack.logs("learner")[-3000:]
    steps = stack.steps()
    assert [one["step"] for one in steps] == list(range(1, len(steps) + 1))
    assert json.loads((folder / "result.json").read_text())["steps"] == len(steps)
    rewards = [one["reward_mean"] for one in steps]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10, rewards
    assert json.loads((folder / "ledger.json").read_text())["balanced"]


def test_a_rollout_server_stops_when_told(stack: Stack) -> None:
    stack.strike("rollout-server", signal.SIGTERM)
    until("it ends by itself", lambda: '"event": "stopped"' in stack.logs("rollout-server"), stack, 90)
