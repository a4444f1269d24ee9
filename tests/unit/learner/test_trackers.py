"""Every number of a step's line reaches TensorBoard and wandb, whatever it is called, and wandb works offline."""

from __future__ import annotations

import math
import select
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from mmr1.config.loading import load_config, save_config
from mmr1.errors import ConfigurationError
from mmr1.tracker_names import check_trackers
from mmr1_learner import train as by_hand
from mmr1_learner.metrics import RunFiles
from mmr1_learner.plan import StepPlan
from mmr1_learner.source import Collected
from mmr1_learner.step_records import step_record
from mmr1_learner.trackers import Trackers, numbers
from tests.conftest import make_group, make_prompt
from tests.models import small_config

RECORD = {"reward_mean": 0.5, "phases": {"forward": 1.5, "wait": 2}, "kl_new": 3e-3, "loss": math.nan, "name": "x"}
EXPECTED = {"reward_mean": 0.5, "phases/forward": 1.5, "phases/wait": 2.0, "kl_new": 3e-3}


def test_numbers_of_a_record() -> None:
    assert dict(numbers({**RECORD, "none": None, "flag": True})) == EXPECTED


def test_whatever_the_loss_reports_is_in_the_line() -> None:
    """Names that the report alone knows, and None under a known name that this step has not measured."""
    plan = StepPlan(0, (make_group(make_prompt()),))
    record = step_record(small_config(Path("m")), plan, Collected(lags=[0]), {"loss": 1.0, "ratio_q99": 1.1}, {}, 1.0)
    assert record["loss"] == 1.0 and record["ratio_q99"] == 1.1 and record["kl_k3"] is None


def test_tensorboard(tmp_path: Path) -> None:
    """Read back with TensorBoard's own reader; a second life replaces the steps that it takes again."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(tmp_path, trackers=["tensorboard"])
    for values in ({1: 0.1, 2: 0.2, 3: 0.3}, {2: 0.4}):
        trackers = Trackers(config, RunFiles(tmp_path), tmp_path)
        for step, value in values.items():
            trackers.log(step, {**RECORD, "reward_mean": value})
        trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(EXPECTED)
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("reward_mean")] == [(1, 0.1), (2, 0.4)]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything stays in the run's folder; a restart goes on with the same id; no password, and nobody is called."""
    nobody = socket.create_server(("127.0.0.1", 0))
    for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["learner", "--redis_url", "redis://:secret@127.0.0.1:1/0"])
    config = small_config(tmp_path, trackers=["wandb"], redis_url="redis://:secret@127.0.0.1:1/0", run="mine")
    check_trackers(config.trackers)
    ids = set()
    for step in (1, 2):
        files = RunFiles(tmp_path)
        trackers = Trackers(config, files, tmp_path)
        trackers.log(step, RECORD)
        trackers.close()
        ids.add(files.read("trackers", {})["wandb"])
    assert len(ids) == 1
    assert not select.select([nobody], [], [], 0)[0], "wandb has tried to reach a server"
    nobody.close()
    written = sorted((tmp_path / "wandb").glob(f"offline-run-*-{ids.pop()}/run-*.wandb"))
    assert written
    content = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    for name in (*EXPECTED, "num_generations", "mine"):
        assert name.encode() in content, name
    assert b"secret" not in content


class StandInWandb:
    """The module wandb, and its run. `broken` names what raises."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.calls = broken, list[Any]()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> StandInWandb:
            self.calls.append((name, args, kwargs))
            if name == self.broken:
                raise ConnectionError(f"no {name} today")
            return self

        return call

    def named(self, name: str) -> list[Any]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def test_a_file_in_the_way_of_tensorboard_costs_one_warning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file")
    with structlog.testing.capture_logs() as lines:
        trackers = Trackers(small_config(tmp_path, trackers=["tensorboard"]), RunFiles(tmp_path), tmp_path)
        for step in (1, 2):
            trackers.log(step, RECORD)
        trackers.close()
    assert [(line["tracker"], line["log_level"]) for line in lines] == [("tensorboard", "warning")]
    assert "FileExistsError" in lines[0]["reason"]


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_wandb_may_fail_anywhere(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandInWandb(broken)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with structlog.testing.capture_logs() as lines:
        trackers = Trackers(small_config(tmp_path, trackers=["wandb"]), RunFiles(tmp_path), tmp_path)
        for step in (1, 2):
            trackers.log(step, RECORD)
        trackers.close()
    assert [line["reason"] for line in lines] == [f"ConnectionError('no {broken} today')"]
    assert len(wandb.named(broken)) == 1 and len(wandb.named("finish")) == (broken == "finish")


def test_wandb_is_given_steps_of_our_own_and_the_runs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `step=` it would drop the steps that a resumed run takes again."""
    wandb = StandInWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trackers = Trackers(small_config(tmp_path, trackers=["wandb"]), RunFiles(tmp_path), tmp_path)
    for step in (3, 2):
        trackers.log(step, RECORD)
    trackers.close(exit_code=1)
    assert (("*",), {"step_metric": "step"}) in wandb.named("define_metric")
    assert wandb.named("log") == [(({**EXPECTED, "step": step},), {}) for step in (3, 2)]
    assert wandb.named("finish") == [((), {"exit_code": 1})]


def test_missing_packages_and_keys_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmr1.tracker_names.find_spec", lambda name: None if name == "tensorboard" else object())
    nobody = {"HOME": str(tmp_path)}
    with pytest.raises(ConfigurationError, match="the package tensorboard is not installed; pip install tensorboard"):
        check_trackers(["tensorboard"], nobody)
    with pytest.raises(ConfigurationError, match=r"wandb has no key; .* WANDB_MODE=offline"):
        check_trackers(["wandb"], nobody)
    check_trackers(["wandb"], {**nobody, "WANDB_MODE": "offline"})
    check_trackers(["wandb"], {**nobody, "WANDB_API_KEY": "k"})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    check_trackers(["wandb"], nobody)
    check_trackers([], nobody)


def test_the_option() -> None:
    base = ["--model", "m", "--train_file", "t", "--num_steps", "1", "--per_device_batch_size", "8"]
    config = load_config(None, [*base, "--trackers", "tensorboard", "wandb", "--dump_steps", "3", "7"])
    assert config.trackers == ["tensorboard", "wandb"] and config.dump_steps == [3, 7]
    with pytest.raises(ConfigurationError, match=r"option 'trackers\.0'"):
        load_config(None, [*base, "--trackers", "mlflow"])
    with pytest.raises(ConfigurationError, match=r"option 'dump_steps\.0'"):
        load_config(None, [*base, "--dump_steps", "0"])


def test_a_learner_that_was_started_by_hand_names_a_missing_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an engine is loaded, like `mmr1 up`."""
    config = small_config(tmp_path, trackers=["wandb"], run_dir=str(tmp_path))
    save_config(config, tmp_path / "run.yaml")
    monkeypatch.setattr("mmr1.tracker_names.find_spec", lambda _: None)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(by_hand, "set_environment", lambda _: None)
    monkeypatch.setattr(by_hand, "configure_logging", lambda _: None)
    monkeypatch.setattr(by_hand, "train", lambda _: pytest.fail("an engine would be loaded"))
    with pytest.raises(ConfigurationError, match="the package wandb is not installed"):
        by_hand.main(["--config", str(tmp_path / "run.yaml")])
