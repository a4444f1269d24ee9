"""What makes a run another one is refused in its folder; what may be changed on purpose goes on and is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from mmr1.config import RunConfig
from mmr1.config.sft_options import SftConfig
from mmr1.dataset import train_problems
from mmr1.errors import ConfigurationError
from mmr1.local import stack
from mmr1.run_identity import check_same_run, identity_of, options_of, say_changed_options

WEIGHTS = 200_000  # bytes: more than what is read at both ends


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a dataset, held-out problems, and what counts as a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmr1.run_identity.check_model", Path)
    for name, solutions in (("train", (1, 2, 3)), ("eval", (4,))):
        rows = [{"problem": "How many?", "solution": number, "image": f"{number}.png"} for number in solutions]
        Path(f"{name}.json").write_text(json.dumps(rows))
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/model.safetensors").write_bytes(b"\0" * WEIGHTS)
    return tmp_path


def config(kind: type[RunConfig] = RunConfig, **options: Any) -> RunConfig:
    base = {"model": "m", "train_file": "train.json", "eval_file": "eval.json", "num_steps": 4, "run_dir": "r"}
    return kind(**{**base, "per_device_batch_size": 8, "num_generations": 4, **options})


def save(of: RunConfig, step: int = 2) -> Path:
    """The state of a checkpoint, as the learner keeps it."""
    path = Path("r") / ("sft" if isinstance(of, SftConfig) else "") / f"checkpoints/step-{step:06d}/state.json"
    path.parent.mkdir(parents=True)
    problems = train_problems(of, check_images=False)
    identity = identity_of(of, problems)
    path.write_text(json.dumps({"step": step, "identity": identity, "options": options_of(of)}))
    return path


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 7}, "seed was 0 and is 7"),
        ({"objective": "rloo"}, "objective was grpo and is rloo"),
        ({"num_generations": 8}, "num_generations was 4 and is 8"),
        ({"rewards": ["format=0.5"]}, r"rewards was counting=1 and is format=0\.5"),
        ({"reward_scale": 2}, r"reward_scale was 1\.0 and is 2\.0"),
        ({"reward_shuffle": True}, "reward_shuffle was False and is True"),
        ({"question_template": "qwen"}, "question_template was default and is qwen"),
        ({"task": "ocr"}, r"train_file was 3 problems \(\w{12}\) and is 3 problems \(\w{12}\)"),
        ({"train_file": "eval.json"}, r"train_file was 3 problems \(\w{12}\) and is 1 problems"),
        ({"lora_alpha": 64}, r"lora_alpha was 32\.0 and is 64\.0"),
    ],
)
def test_what_makes_another_run_is_refused_with_both_values(folder: Path, options: dict[str, Any], reason: str) -> None:
    save(config(lora_rank=2))
    with pytest.raises(ConfigurationError, match=f"of another run: .*{reason}.*; restore .* new run_dir") as raised:
        check_same_run(config(**{"lora_rank": 2, **options}))
    assert "\n" not in str(raised.value)


def other_solution() -> None:
    Path("train.json").write_text(Path("train.json").read_text().replace('"solution": 3', '"solution": 2'))


def other_weights() -> None:
    Path("m/model.safetensors").write_bytes(b"\0" * (WEIGHTS - 1) + b"\1")


@pytest.mark.parametrize(("change", "name"), [(other_solution, "train_file"), (other_weights, "model")])
def test_files_are_held_against_the_checkpoint_by_what_is_in_them(
    folder: Path, change: Callable[[], None], name: str
) -> None:
    save(config())
    change()
    with pytest.raises(ConfigurationError, match=f"another run: {name} was"):
        check_same_run(config())
    shutil.move("r/checkpoints", "r/other")
    check_same_run(config())


def test_what_may_be_changed_goes_on_and_is_said(folder: Path) -> None:
    state = json.loads(save(config()).read_text())
    shutil.move("m", "moved")
    changed = {"learning_rate": 1e-5, "num_steps": 9, "checkpoint_every": 3, "kl": ["k1"], "temperature": 0.5}
    now = config(model="moved", rewards="counting=1.0", eval_file=None, **changed)
    check_same_run(now)
    with capture_logs() as logs:
        say_changed_options(state["options"], now)
    check_same_run(config(model="moved", eval_file="train.json", eval_sample_size=1))
    (line,) = logs
    assert {name for name in line if name not in ("event", "log_level")} == set(changed)
    assert line["learning_rate"] == "1e-06 before, 1e-05 now" and line["log_level"] == "warning"
    with capture_logs() as logs:
        say_changed_options(state["options"], config())
        say_changed_options({}, now)
    assert logs == []


def test_the_newest_checkpoint_counts_and_an_older_release_recorded_nothing(folder: Path) -> None:
    path = save(config(), step=2)
    with pytest.raises(ConfigurationError, match="seed was 0"):
        check_same_run(config(seed=1))
    save(config(seed=1), step=10)
    save(config(seed=2), step=11).parent.rename("r/checkpoints/step-000011.writing")
    check_same_run(config(seed=1, num_steps=10))
    with pytest.raises(ConfigurationError, match="its checkpoint is of step 10, past num_steps 9; give num_steps"):
        check_same_run(config(seed=1, num_steps=9))
    shutil.rmtree("r/checkpoints/step-000010")
    path.write_text(json.dumps({"step": 2}))
    check_same_run(config(seed=1))


def test_fine_tuning_is_asked_for_what_it_uses(folder: Path) -> None:
    save(config(SftConfig))
    check_same_run(config(SftConfig, objective="rloo", num_generations=2, rewards=["format"], num_epochs=2))
    with pytest.raises(ConfigurationError, match="answer_template was default and is qwen; restore"):
        check_same_run(config(SftConfig, answer_template="qwen"))
    check_same_run(config(seed=3))  # a run in the same folder is its own


def test_mmr1_up_refuses_before_it_writes_or_starts_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's config.yaml is still the old run's. One whose folder is cleared first is not asked."""
    save(config())
    monkeypatch.setattr(stack, "check", lambda _: None)
    monkeypatch.setattr(stack, "supervise", lambda *_: pytest.fail("services would start"))
    with pytest.raises(ConfigurationError, match="seed was 0 and is 1"):
        stack.run_stack(config(seed=1), Console())
    assert not Path("r/config.yaml").exists()

    class ClearedError(Exception):
        pass

    def clear() -> None:
        raise ClearedError

    with pytest.raises(ClearedError):
        stack.run_stack(config(seed=1), Console(), clear=clear)


def test_before_a_checkpoint_the_queue_is_the_run_s(folder: Path) -> None:
    """Its prompts were rendered and will be rewarded as the first life had it."""
    identity = identity_of(config(), train_problems(config(), check_images=False))
    Path("r").mkdir()
    Path("r/run.json").write_text(json.dumps({"run_id": "x", "incarnation": 1, "identity": identity}))
    check_same_run(config())
    with pytest.raises(ConfigurationError, match="its queue is of another run: seed was 0 and is 1; restore"):
        check_same_run(config(seed=1))


def test_order_of_rewards_and_files_that_nobody_loads_make_no_other_run(folder: Path) -> None:
    save(config(rewards=["counting=1.0", "format=0.5"]))
    Path("m/training_args.bin").write_bytes(b"x")
    Path("m/config.json").write_text('{"edited": true}')
    check_same_run(config(rewards=["format=0.5", "counting=1.0"]))
