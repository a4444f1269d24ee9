"""The files of `mmr1 eval` when one is damaged, foreign or missing: no answer is thrown away without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmr1.errors import ConfigurationError
from mmr1.evaluation import Answer
from mmr1.records import Group, Problem, Prompt, PromptId, Sampling
from mmr1_learner.held_out.files import IDENTITY, SAMPLES, EvaluationFiles, recorded_identity

OF_IT = {"model": "files 1", "format": 1}
PROBLEMS = [Problem(place, "How many?", 3, (), "counting") for place in range(4)]


def answer(problem: int, sample: int = 0, task: str = "counting") -> Answer:
    return Answer(problem, sample, task, "3", 3, is_valid=True, is_truncated=False, reward=1.0, parsed={"count": 3})


def line(problem: int, sample: int = 0, task: str = "counting") -> str:
    return json.dumps(answer(problem, sample, task).as_json())


def taken_up(folder: Path, num_samples: int = 1) -> tuple[EvaluationFiles, list[str]]:
    said: list[str] = []
    files = EvaluationFiles(folder, PROBLEMS, num_samples)
    files.begin(OF_IT, said.append)
    return files, said


def there(folder: Path, *lines: str, end: str = "\n", identity: str | None = json.dumps(OF_IT)) -> None:
    (folder / SAMPLES).write_text("\n".join(lines) + end)
    if identity is not None:
        (folder / IDENTITY).write_text(identity)


def test_what_is_whole_is_taken_up_without_a_word(tmp_path: Path) -> None:
    there(tmp_path, line(2), line(0))
    files, said = taken_up(tmp_path)
    assert files.answered == {0, 2} and files.answers == [answer(0), answer(2)] and not said


@pytest.mark.parametrize(
    "bad",
    [
        "\0\0\0\0",
        '{"problem": 1, "sa',
        "[]",
        '{"problem": 1, "sample": 0}',
        line(1, task="grounding"),
        line(4),
        line(-1),
        line(1, 1),
        line(1).replace('"reward": 1.0', '"reward": "all"'),
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_answer_is_named_and_its_problem_asked_again(tmp_path: Path, bad: str) -> None:
    there(tmp_path, line(0), bad, line(2))
    files, said = taken_up(tmp_path)
    assert files.answered == {0, 2} and files.answers == [answer(0), answer(2)]
    path = tmp_path / SAMPLES
    assert said == [f"{path}: line 2 is no answer of this evaluation; what is missing without is asked again"]
    assert path.read_text().count("\n") == 2, "whatever is appended now stands on a line of its own"
    assert taken_up(tmp_path)[1] == [], "said once"


def test_bytes_that_are_no_text_and_half_a_line(tmp_path: Path) -> None:
    there(tmp_path, line(0), "X", line(2), '{"prob', end="")
    (tmp_path / SAMPLES).write_bytes((tmp_path / SAMPLES).read_bytes().replace(b"X", b"\xff\xfe"))
    files, said = taken_up(tmp_path)
    assert files.answered == {0, 2}
    assert len(said) == 1 and "2 lines, the first of them 2, are no answer of this evaluation" in said[0]


def test_a_problem_with_some_of_its_answers_is_asked_again(tmp_path: Path) -> None:
    there(tmp_path, line(0, 0), line(0, 1), line(1, 0), "", line(2, 1))
    files, said = taken_up(tmp_path, num_samples=2)
    assert files.answered == {0} and len(said) == 1


@pytest.mark.parametrize(
    ("identity", "what"), [(None, "is missing"), ("", "cannot be read"), ('{"model', "cannot be read")]
)
def test_answers_of_an_unknown_evaluation_are_kept_and_refused(tmp_path: Path, identity: str | None, what: str) -> None:
    there(tmp_path, line(0), identity=identity)
    before = (tmp_path / SAMPLES).read_text()
    with pytest.raises(ConfigurationError, match=rf"{IDENTITY} {what}, .*give another --eval_dir, or move {SAMPLES}"):
        taken_up(tmp_path)
    assert (tmp_path / SAMPLES).read_text() == before
    (tmp_path / SAMPLES).rename(tmp_path / "kept.jsonl")
    assert recorded_identity(tmp_path) is None
    files, said = taken_up(tmp_path)
    assert files.answered == set() and not said and recorded_identity(tmp_path) is None
    assert json.loads((tmp_path / IDENTITY).read_text()) == OF_IT


def test_an_answer_is_on_disk_before_the_next_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = taken_up(tmp_path)
    synced: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def record(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(("sync", path.name))
        sync(descriptor)
        if path.name == SAMPLES:
            assert path.read_text() == written, "its bytes are handed to the system first"

    def named(old: Path, new: Path) -> None:
        synced.append(("name", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", named)
    prompt = Prompt(PromptId("run", 0), "How many?", (), "counting", "How many?", 3, 1, Sampling(0.0, 8))
    asked = {"question": "How many?", "prompt": prompt.text, "images": []}
    written = json.dumps({**answer(0).as_json(), **asked, "server": "r"}) + "\n"
    files.append(Group(prompt, (1,), (), "r"), [answer(0)])
    assert synced == [("sync", SAMPLES)]
    synced.clear()
    files.finish({}, [])
    for name in (SAMPLES, "results.json", "results.md"):
        part, synced = synced[:3], synced[3:]
        assert part == [("sync", f"{name}.writing"), ("name", name), ("sync", tmp_path.name)]
