"""A run of several tasks: what each row is rewarded by, how often each task comes, and what is refused beforehand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmr1.config import RunConfig, load_config
from mmr1.dataset import eval_problems, order_of, train_problems
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_data
from mmr1.records import RewardSpec
from mmr1.run_identity import _differences, identity_of

SOLUTIONS: dict[str, Any] = {"counting": 3, "grounding": [1, 2, 30, 40]}


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    tasks = ["counting"] * 30 + ["grounding"] * 10
    rows = [{"problem": f"{i}?", "solution": SOLUTIONS[t], "image": "a.png", "task": t} for i, t in enumerate(tasks)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path / "train.json"


def run(train_file: Path, **options: Any) -> RunConfig:
    required: dict[str, Any] = {"model": "m", "num_steps": 1, "per_device_batch_size": 8}
    return RunConfig(**required, train_file=train_file, **options)


def test_task_among_the_rewards_is_the_rows_own(tmp_path: Path) -> None:
    iou, exact = {"score": "iou"}, {"score": "exact"}
    params = {"grounding": iou, "format": exact}
    config = run(tmp_path, rewards=["task=1.5", "format=0.2"], reward_params=params)
    assert config.reward_specs_for("counting") == (RewardSpec("counting", 1.5), RewardSpec("format", 0.2, exact))
    assert config.reward_specs_for("grounding") == (
        RewardSpec("grounding", 1.5, iou),
        RewardSpec("format", 0.2, exact),
    )
    both = run(tmp_path, rewards=["task", "counting=0.5"])
    assert both.reward_specs_for("counting") == (RewardSpec("counting", 1.5),)
    assert both.reward_specs_for("ocr") == (RewardSpec("ocr", 1.0), RewardSpec("counting", 0.5))


def held_out(train_file: Path, size: int | None, seed: int = 0) -> list[tuple[int, str]]:
    config = run(train_file, eval_file=train_file, eval_sample_size=size, seed=seed)
    return [(problem.position, problem.task) for problem in eval_problems(config)]


def test_some_held_out_problems_are_of_every_task_in_its_share(train_file: Path) -> None:
    """30 rows of one task stand before 10 of the other."""
    for size, of_the_second in [(20, 5), (8, 2), (6, 1), (3, 1), (2, 1), (39, 10)]:
        found = held_out(train_file, size)
        assert len(found) == size and [task for _, task in found].count("grounding") == of_the_second
        assert found == sorted(set(found)), "in the file's order, none twice"
    assert held_out(train_file, 1)[0][1] == "counting", "no place for both: the one with more rows"


def test_some_held_out_problems_are_drawn_by_the_seed_and_always_the_same(train_file: Path) -> None:
    assert held_out(train_file, 8) == held_out(train_file, 8) != held_out(train_file, 8, seed=1)
    assert held_out(train_file, 8) != held_out(train_file, None)[:6] + held_out(train_file, None)[30:32]
    assert set(held_out(train_file, 8)) < set(held_out(train_file, 20))


def test_held_out_problems_that_are_all_taken_stay_in_their_order(train_file: Path) -> None:
    whole = [(place, "counting" if place < 30 else "grounding") for place in range(40)]
    assert held_out(train_file, None) == held_out(train_file, 40) == held_out(train_file, 41) == whole


def test_a_task_with_a_single_row_has_its_place(train_file: Path) -> None:
    rows = json.loads(train_file.read_text())
    train_file.write_text(json.dumps([*rows, {**rows[0], "task": "ocr", "solution": "a"}]))
    for size in (3, 10, 40):
        tasks = [task for _, task in held_out(train_file, size)]
        assert len(tasks) == size and tasks.count("ocr") == 1 and set(tasks) == {"counting", "grounding", "ocr"}


def test_the_data_order_follows_the_weights_and_is_the_old_one_without(train_file: Path) -> None:
    def taken(**options: Any) -> list[str]:
        config = run(train_file, **options)
        problems = train_problems(config)
        order = order_of(problems, config)
        return [problems[order.index(position)].task for position in range(40)]

    assert taken().count("grounding") == 10, "every row once"
    assert taken(task_weights={"counting": 1, "grounding": 1}).count("grounding") == 20
    assert taken(task_weights={"counting": 0, "grounding": 1}).count("grounding") == 40
    listed = list(train_problems(run(train_file)))
    config = run(train_file, task_weights={"counting": 2, "grounding": 1})
    first, second = order_of(listed, config), order_of(train_problems(config), config)
    assert [first.index(position) for position in range(50)] == [second.index(position) for position in range(50)]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"counting": 1, "grouding": 1}, r"no training problem is of task 'grouding'; did you mean 'grounding'\?"),
        ({"counting": 1}, r"task 'grounding' of the training problems has no weight; give it one \(0 leaves it out\)"),
        ({"counting": 1, "zzz": 1}, "is of task 'zzz'; there are counting, grounding"),
    ],
)
def test_weights_and_tasks_must_match(train_file: Path, weights: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        check_data(run(train_file, task_weights=weights))
    check_data(run(train_file, task_weights={"counting": 1, "grounding": 0}))


def test_each_row_is_rewarded_by_its_own_task_unless_the_run_says_otherwise(train_file: Path) -> None:
    config = load_config(None, ["--model", "m", "--train_file", str(train_file), "--num_steps", "1",
                                "--per_device_batch_size", "8"])  # fmt: skip
    for task in check_data(config).tasks:
        assert config.reward_specs_for(task) == (RewardSpec(task, 1.0),)


@pytest.mark.parametrize(
    ("rewards", "weights", "refused"),
    [
        (["counting=1.0", "format=0.2"], {}, "'counting' would score rows of task 'grounding'"),
        (["grounding"], {}, "'grounding' would score rows of task 'counting'"),
        (["task", "counting=0.5"], {}, "'counting' would score rows of task 'grounding'"),
        (["ocr"], {"counting": 1, "grounding": 0}, "'ocr' would score rows of task 'counting'"),
        (["counting", "format=0.2"], {"counting": 1, "grounding": 0}, None),  # no grounding row is ever asked
        (["task", "format=0.2", "length"], {}, None),
        (["mmr1_grounding", "pr1_counting", "my_own"], {}, None),  # presets and plug-ins: their users know
    ],
)
def test_the_judge_of_another_task_is_refused(
    train_file: Path, rewards: list[str], weights: dict[str, float], refused: str | None
) -> None:
    config = run(train_file, rewards=rewards, task_weights=weights)
    if refused is None:
        check_data(config)
        return
    with pytest.raises(ConfigurationError, match=rf"option 'rewards': {refused} in train_file .*; write `task`"):
        check_data(config)


def test_rows_of_a_users_own_task_may_be_judged_by_one_of_the_four(train_file: Path) -> None:
    rows = [{"problem": "Read.", "solution": "abc", "image": "a.png", "task": "receipts"}]
    train_file.write_text(json.dumps(rows))
    check_data(run(train_file, rewards=["ocr"]))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--task_weights", "{counting: 2}"], "option 'task_weights': '{counting: 2}' is not a mapping in JSON"),
        (["--task_weights", '{"counting": -1}'], "'task_weights.counting': Input should be greater than or equal to 0"),
        (["--task_weights", '{"counting": 0}'], "task_weights are all 0; give one task at least a weight above 0"),
        (["--reward_params", '["counting"]'], "'reward_params': Input should be a valid dictionary"),
        (["--reward_params", '{"counting": 1}'], r"'reward_params.counting': Input should be a valid dictionary"),
    ],
)
def test_a_mapping_that_is_none_is_one_line(words: list[str], reason: str) -> None:
    required = ["--model", "m", "--train_file", "t", "--num_steps", "1", "--per_device_batch_size", "8"]
    with pytest.raises(ConfigurationError, match=reason):
        load_config(None, [*required, *words])


@pytest.mark.parametrize(
    "options",
    [{"task_weights": {"counting": 1, "grounding": 1}}, {"reward_params": {"counting": {"score": "exact"}}}],
)
def test_another_mixture_is_another_run(
    train_file: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmr1.run_identity.check_model", lambda _: None)
    problems = train_problems(run(train_file))
    before = json.loads(json.dumps(identity_of(run(train_file), problems)))
    assert _differences(before, identity_of(run(train_file), list(problems))) == {}, "a list has the same digest"
    assert list(_differences(before, identity_of(run(train_file, **options), problems))) == list(options)


def test_the_digest_of_a_dataset_is_the_one_that_older_checkpoints_hold(train_file: Path) -> None:
    """sha256 of the JSON text of [[problem, solution, images, task], ...], to twelve digits."""
    problems = train_problems(run(train_file))
    text = json.dumps([[p.problem, p.solution, p.images, p.task] for p in problems])
    assert problems.digest == hashlib.sha256(text.encode()).hexdigest()
    some = train_problems(run(train_file, train_sample_size=7))
    text = json.dumps([[p.problem, p.solution, p.images, p.task] for p in some])
    assert some.digest == hashlib.sha256(text.encode()).hexdigest()


def test_image_dir_is_where_paths_begin(train_file: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "train2017" / "a.png")
    inside = tmp_path / "train2017"
    assert train_problems(run(train_file, image_dir=inside))[0].images == ("a.png",)
    both = run(train_file, image_dir=inside, image_root=tmp_path)
    assert train_problems(both)[0].images == ("train2017/a.png",)
    with pytest.raises(ConfigurationError, match="lies outside the image root"):
        train_problems(run(train_file, image_dir=tmp_path, image_root=inside))


def test_as_many_images_are_looked_at_as_asked(train_file: Path, tmp_path: Path) -> None:
    rows = [{"problem": "?", "solution": i, "image": f"{i}.png"} for i in range(40)]
    train_file.write_text(json.dumps(rows))
    for index in range(0, 40, 10):
        Image.new("L", (4, 4)).save(tmp_path / f"{index}.png")
    assert len(train_problems(run(train_file, image_checks=4))) == 40, "every tenth is there"
    assert len(train_problems(run(train_file, image_checks=0))) == 40
    with pytest.raises(ConfigurationError, match=r"image 5.png: does not exist.* \(and 3 more bad rows"):
        train_problems(run(train_file, image_checks=8))
