"""What a checkpoint remembers of the run that wrote it, and what the next learner makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mmr1.records import PolicyVersion
from mmr1.run_identity import options_of
from mmr1_learner.checkpoint import RunState, _from_json
from mmr1_learner.leader import Leader
from tests.unit.learner.run_of_a_test import PER_STEP, Run


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Run:
    return Run(redis_url, tmp_path)


def leader_of(run: Run, **parts: Any) -> Leader:
    """A leader that has only what is given: no model is loaded."""
    leader = Leader.__new__(Leader)
    for name, value in {"_config": run.config, **parts}.items():
        setattr(leader, name, value)
    return leader


def test_a_checkpoint_remembers_whose_run_it_is(run: Run) -> None:
    learner = run.learner()
    parts: dict[str, Any] = {
        "queue": learner.queue,
        "_source": learner.source,
        "version": PolicyVersion(1, 0),
        "_unsaved": [],
    }
    parts |= {"updates": learner.leader.updates, "_identity": {"seed": 0}}
    leader = leader_of(run, **parts, _state=RunState(0, 0, 0), _started=0.0)
    run.checkpoints.start(1, lambda: None)
    run.checkpoints.finish(leader.state_at(1), lambda: None)
    found = run.checkpoints.newest()
    assert found is not None and found[1].identity == {"seed": 0}
    assert found[1].options == options_of(run.config)
    older = json.loads((found[0] / "state.json").read_text())
    del older["identity"], older["options"]
    assert _from_json(older) == replace(found[1], identity={}, options={})


def test_a_learner_that_goes_on_says_which_options_are_others(run: Run) -> None:
    state = RunState(1, 1, PER_STEP, prompts_per_step=PER_STEP, options={**options_of(run.config), "k3_weight": 0.5})
    with capture_logs() as logs, pytest.raises(AttributeError, match="files"):  # it goes no further
        leader_of(run).prepare(state)
    (line,) = [line for line in logs if line["event"].startswith("options have changed")]
    assert line["k3_weight"] == "0.5 before, 0.2 now"
