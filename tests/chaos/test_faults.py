"""Which faults there are: each service is killed at every station and at random, and the agent knows all phases."""

from __future__ import annotations

import ast
import importlib.util
import json
import signal
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.chaos.faults import AT_RANDOM, FAULTS, SERVICES, SUBSET, Fault, draw
from tests.chaos.stack import AGENT, OWN


@pytest.fixture(scope="module")
def agent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_of_a_test", Path(AGENT) / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FOLDER is None, "nothing is watched here"
    return module


def functions_of(module: str) -> set[str]:
    """Qualified names of a module's functions, read and not imported: some load vLLM."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    found = set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {owner + one.name for one in inner if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_killed_at_every_station_and_killed_and_frozen_at_random(service: str) -> None:
    stations = {
        "prompt taken",
        "mid-generation",
        "before publish",
        "after publish",
        "mid-step",
        "mid-checkpoint",
        "between checkpoint and ack",
        "weights leaving",
        "weights arriving",
        AT_RANDOM,
    }
    mine = [fault for fault in FAULTS if fault.victim == service]
    assert stations <= {fault.phase for fault in mine if not fault.frozen_seconds}
    assert any(fault.frozen_seconds and fault.phase == AT_RANDOM for fault in mine)


def test_every_kind_of_fault_comes_once_before_any_comes_twice() -> None:
    assert len(FAULTS) == len(set(FAULTS)) >= 50 and set(SUBSET) <= set(FAULTS)
    drawn = draw(len(FAULTS) + 2, seed=1)
    assert set(drawn[:-2]) == set(FAULTS) and draw(len(FAULTS), seed=2) != drawn[:-2]


def test_every_phase_is_one_that_the_agent_reaches(agent: ModuleType) -> None:
    """A phase whose function has been renamed would never come."""
    reached = {*agent.PHASES, *(phase for phases in OWN.values() for phase in phases), AT_RANDOM}
    assert {fault.phase for fault in FAULTS} <= reached
    for module, path, _, _ in agent.PHASES.values():
        assert path in functions_of(module), f"{module} has no {path}"


def test_what_strikes_itself_is_in_the_process_it_says(agent: ModuleType) -> None:
    at_home = {
        "rollout": ("mmr1_rollout_server.", "mmr1.streams.prompts"),
        "learner": ("mmr1_learner.", "mmr1.streams.groups"),
    }
    for service, modules in at_home.items():
        for phase in OWN[service]:
            assert agent.PHASES[phase][0].startswith(modules), Fault(service, phase)


def test_a_server_and_its_engine_die_once_a_bucket_of_weights_has_left(
    agent: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "FOLDER", tmp_path)
    server, engine = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        order = {"pid": server.pid, "beside": [engine.pid], "signal": int(signal.SIGKILL)}
        (tmp_path / "bucket left.armed").write_text(json.dumps(order))
        alive_at_send: list[bool] = []

        class Collective:
            def send(self, _: object) -> None:
                alive_at_send.append(server.poll() is None)

        Collective.__module__ = "mmr1_learner.collective"
        module = ModuleType("mmr1_learner.collective")
        vars(module)["Collective"] = Collective
        agent.strike_between_buckets(module)
        Collective().send(b"")
        assert alive_at_send == [True]
        assert [one.wait(10) for one in (server, engine)] == [-signal.SIGKILL] * 2
        assert json.loads((tmp_path / "bucket left.struck").read_text())["pid"] == server.pid
    finally:
        for one in (server, engine):
            one.kill()
            one.wait()


def test_every_collective_is_watched_for_buckets(agent: ModuleType) -> None:
    sends = {"mmr1_learner.collective": "Collective", "mmr1_learner.device_collective": "NcclCollective"}
    assert all(f"{name}.send" in functions_of(module) for module, name in sends.items())
    assert "IpcCollective.send" in functions_of("mmr1_learner.device_collective")
