"""Datasets from files: good rows, every kind of bad row by line and key, and the length of a run."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from mmr1.config import RunConfig, load_config, save_config
from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.dataset import BadRow, Keys, eval_problems, load_problems, train_problems, with_steps
from mmr1.errors import ConfigurationError
from mmr1.local.stack import run_stack
from mmr1.reading.problem_rows import Row, read_rows
from mmr1_learner.train import main as learner


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


def row(**changes: Any) -> dict[str, Any]:
    return {"problem": "How many?", "solution": 3, "image": "a.png"} | changes


def write(root: Path, text: str, name: str = "data.json") -> Path:
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize("layout", ["array", "indented", "lines", "bom"])
def test_both_formats(root: Path, layout: str) -> None:
    rows = [row(), row(solution={"box": [1, 2]}, image=["a.png", "b.png"], task="grounding")]
    text = {
        "array": json.dumps(rows),
        "indented": json.dumps(rows, indent=2),
        "lines": "\n\n".join(map(json.dumps, rows)) + "\n",
        "bom": "\ufeff" + json.dumps(rows),
    }[layout]
    first, second = load_problems(write(root, text), root=root, task="counting")
    assert (first.position, first.images, first.task, first.solution) == (0, ("a.png",), "counting", 3)
    assert (second.position, second.images, second.task) == (1, ("a.png", "b.png"), "grounding")


def test_other_keys(root: Path) -> None:
    path = write(root, json.dumps([{"q": "?", "a": "x", "img": "a.png"}]))
    (problem,) = load_problems(path, root=root, problem_key="q", answer_key="a", image_key="img", task="ocr")
    assert (problem.problem, problem.solution, problem.task) == ("?", "x", "ocr")


BAD_ROWS = [
    ({"problem": "?", "image": "a.png", "solutoin": 1}, "'solution' is missing; did you mean 'solutoin'"),
    (row(problem=" "), "'problem' must be a text"),
    (row(solution=None), "'solution' is empty"),
    (row(image=[]), "'image' must be an image path"),
    (row(image=7), "'image' must be an image path"),
    (row(image="../x.png"), "key 'image': image .*outside the image root"),
    (row(image="none.png"), "key 'image': image none.png: does not exist"),
    (row(task=""), "'task' must be a task's name"),
    ("text", "a row must be an object"),
    (row(problem="\ud800"), "'problem' must be a text"),
    (row(solution=["\ud800"]), "'solution' holds half a character; a solution is made of"),
    (row(solution=functools.reduce(lambda inner, _: [inner], range(600), 3)), "'solution' is nested too deeply"),
    (row(image="\ud800.png"), "'image' must be an image path"),
    (row(image=["a.png", {"bytes": "a.png"}]), "'image' must be an image path"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
@pytest.mark.parametrize("array", [True, False])
def test_bad_rows_name_the_line(root: Path, bad: Any, reason: str, array: bool) -> None:
    rows = [row(), bad, row()]
    text = json.dumps(rows, indent=1) if array else "\n".join(map(json.dumps, rows))
    line = 7 if array else 2
    path = write(root, text)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_problems(path, root=root)
    assert str(caught.value).startswith(f"{path}:{line}: ") and "\n" not in str(caught.value)


BAD_FILES = [
    ('[\n{"problem": "?",,}]', ":2: is not JSON"),
    ("[\n\n" + json.dumps(row()) + "\n{}]", ":4: is not JSON .expected ',' or ']'"),
    ("[" + json.dumps(row()), "is not JSON .expected ',' or ']' after a row, found the end"),
    ("[" + json.dumps(row()) + "]\n{}", ":1: is not JSON .*after the closing"),
    (json.dumps(row()) + "\n{bad\n", ":2: is not JSON"),
    ('{"problem": "?", "solution": NaN, "image": "a.png"}', ":1: is not JSON .NaN"),
    ("[" * 100_000, "nested too deeply"),
    ("", "holds no problem"),
    ("[]", "holds no problem"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_FILES)
def test_bad_files(root: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_problems(write(root, text), root=root)


def test_files_that_cannot_be_read(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_problems(root / "none.json", root=root)
    (root / "latin.json").write_bytes(b'[\n{"problem": "caf\xe9"}]')
    with pytest.raises(ConfigurationError, match=":2: is not UTF-8"):
        load_problems(root / "latin.json", root=root)


def test_all_bad_rows_at_once(root: Path) -> None:
    path = write(root, "\n".join(["{", json.dumps(row()), "[]", json.dumps({"problem": "?"})]))
    rows = list(read_rows(path, root=root, keys=Keys()))
    assert [(type(found), found.number) for found in rows] == [(BadRow, 1), (Row, 2), (BadRow, 3), (BadRow, 4)]
    with pytest.raises(ConfigurationError, match="and 2 more bad rows"):
        load_problems(path, root=root)


def test_samples_are_seeded_and_nested(root: Path) -> None:
    path = write(root, json.dumps([row(solution=i) for i in range(50)]))
    ten = [p.solution for p in load_problems(path, root=root, sample_size=10, seed=3)]
    twenty = [p.solution for p in load_problems(path, root=root, sample_size=20, seed=3)]
    assert twenty[:10] == ten and len(set(twenty)) == 20
    assert ten != [p.solution for p in load_problems(path, root=root, sample_size=10, seed=4)]


def test_run_configuration(root: Path) -> None:
    train = write(root, json.dumps([row(solution=i) for i in range(5)]), "train.json")
    (root / "held").mkdir()
    Image.new("L", (4, 4)).save(root / "held" / "c.png")
    held = write(root / "held", json.dumps([row(image="c.png"), row(image="c.png")]))

    def config(**options: Any) -> RunConfig:
        required = {"model": "m", "num_steps": 1, "per_device_batch_size": 8}
        return RunConfig(**required, train_file=train, **options)

    assert len(train_problems(config(train_sample_size=2))) == 2
    assert list(eval_problems(config())) == []
    problems = eval_problems(config(eval_file=held, eval_sample_size=1))
    assert [p.images for p in problems] == [("held/c.png",)]  # relative to the run's root, not to the file
    elsewhere = config(train_sample_size=2, eval_file=train).model_copy(update={"train_file": held, "eval_file": train})
    with pytest.raises(ConfigurationError, match=r"outside the image root.*set image_root"):
        eval_problems(elsewhere)


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"num_epochs": 2}, 5),  # 2 x 5 problems, 2 of them in a step
        ({"num_epochs": 0.5}, 2),
        ({"num_epochs": 2, "learner_processes": 3}, 2),
        ({"num_epochs": 2, "train_sample_size": 3}, 3),
        ({"num_epochs": 2, "task_weights": {"counting": 1, "ocr": 3}}, 5),
        ({"num_epochs": 2, "task_weights": {"counting": 1, "ocr": 0}}, 3),  # 2 x 3: ocr's two are never asked
        ({"num_epochs": 2, "task_weights": {"counting": 0, "ocr": 0.5}}, 2),
        ({"num_steps": 7}, 7),
    ],
)
def test_epochs_are_steps_where_the_data_is_known(root: Path, options: dict[str, Any], num_steps: int) -> None:
    """What `mmr1 up` saves for its services holds the steps; the file that was given serves `mmr1 sft` too."""
    train = write(root, json.dumps([row(solution=i, task="ocr" if i > 2 else "counting") for i in range(5)]))
    document = {"model": "m", "train_file": str(train), "per_device_batch_size": 16, **options}
    (root / "run.yaml").write_text(yaml.safe_dump(document))
    assert load_options(SftConfig, root / "run.yaml").num_epochs == options.get("num_epochs")
    save_config(with_steps(load_config(root / "run.yaml")), root / "saved.yaml")
    saved = load_config(root / "saved.yaml")
    assert (saved.num_steps, saved.num_epochs) == (num_steps, None)
    assert with_steps(saved) == saved


@pytest.mark.parametrize("start", ["up", "rank"])
def test_who_starts_a_run_turns_epochs_into_steps(root: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mmr1 up` before it plans its services, and a rank that a launcher starts with the user's own file."""
    train = write(root, json.dumps([row(solution=i) for i in range(5)]))
    document = {"model": "m", "train_file": str(train), "per_device_batch_size": 16, "num_epochs": 2}
    (root / "run.yaml").write_text(yaml.safe_dump({**document, "run_dir": str(root / "run")}))
    begun: list[RunConfig] = []

    def begin(config: RunConfig) -> None:
        begun.append(config)
        raise ConfigurationError("far enough")

    monkeypatch.setattr("mmr1.local.stack.check", lambda config: None)
    monkeypatch.setattr("mmr1.local.stack.plan", begin)
    monkeypatch.setattr("mmr1_learner.train.set_environment", begin)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="far enough"):
        if start == "up":
            run_stack(load_config(root / "run.yaml"), Console())
        else:
            learner(["--config", str(root / "run.yaml")])
    assert [config.num_steps for config in begun] == [5 if start == "up" else 2]


def test_a_run_has_one_length_and_fine_tuning_may_be_given_another(root: Path) -> None:
    required = ["--model", "m", "--train_file", "t", "--per_device_batch_size", "8"]
    with pytest.raises(ConfigurationError, match="num_steps or num_epochs is required; set one of them"):
        load_config(None, required)
    with pytest.raises(ConfigurationError, match=r"num_steps 3 and num_epochs 1\.5 are both given; leave one of them"):
        load_config(None, [*required, "--num_steps", "3", "--num_epochs", "1.5"])
    both = load_options(SftConfig, None, [*required, "--num_steps", "7", "--num_epochs", "1.5"])
    assert both.for_problems(16, 1).num_steps == 3  # 1.5 x 16 / 8: epochs go before


@pytest.mark.parametrize("kind", [RunConfig, SftConfig])
def test_the_length_of_the_more_specific_source_counts(
    kind: type[RunConfig], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "length.yaml"

    def length(written: str, *arguments: str) -> tuple[int, float | None]:
        file.write_text(f"model: m\ntrain_file: t\nper_device_batch_size: 8\n{written}\n")
        config = load_options(kind, file, arguments)
        return config.num_steps, config.num_epochs

    assert length("num_epochs: 1", "--num_steps", "10") == (10, None)
    assert length("num_steps: 10", "--num_epochs", "2") == (0, 2.0)
    monkeypatch.setenv("MMR1_NUM_STEPS", "7")
    assert length("num_epochs: 1") == (7, None)
    assert length("num_epochs: 1", "--num_epochs", "2") == (0, 2.0)
