"""The digits datasets: disjoint, without overlap, the same for a seed; and the commands that make and check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from mmr1.data_cli import main
from mmr1.dataset import load_problems
from mmr1.digits.counting import draw
from mmr1.digits.files import write_problems
from mmr1.digits.scans import Scans, load_scans, read_scans
from mmr1.digits.tasks import EVAL_STREAM, TASKS, TRAIN_STREAM
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore


@pytest.fixture(scope="module")
def scans() -> Scans:
    return load_scans()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scans: Scans) -> Path:
    out = tmp_path_factory.mktemp("digits")
    write_problems(out, TASKS["counting"], scans, num_train=40, num_eval=20, seed=3, side=112)
    return out


def test_files_hold_what_was_drawn(folder: Path, scans: Scans) -> None:
    problems = load_problems(folder / "train.json", root=folder)
    assert len(problems) == 40 and len(load_problems(folder / "eval.json", root=folder)) == 20
    store = ImageStore(folder)
    for index, problem in enumerate(problems):
        drawn = draw(np.random.default_rng([3, TRAIN_STREAM, index]), scans.training(), 112)
        assert problem.solution == len(drawn.placements) and problem.problem == "How many digits are there?"
        assert (np.asarray(store.open(store.ref(problem.images[0]))) == drawn.pixels[..., None]).all()


def test_splits_share_no_scan(folder: Path, scans: Scans) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    train, held_out = set(manifest["train_scans"]), set(manifest["eval_scans"])
    assert train.isdisjoint(held_out) and len(train | held_out) == len(scans) == 1797
    for stream, allowed, ids in ((TRAIN_STREAM, scans.training(), train), (EVAL_STREAM, scans.held_out(), held_out)):
        drawn = [draw(np.random.default_rng([3, stream, i]), allowed, 112) for i in range(50)]
        assert {placement.scan for one in drawn for placement in one.placements} <= ids


def test_no_digit_covers_another(scans: Scans) -> None:
    counts = np.zeros(8, int)
    for index in range(400):
        pixels, _, _, placements = draw(np.random.default_rng(index), scans, 112)
        counts[len(placements)] += 1
        covered = np.zeros((112, 112), int)
        for _, _, x, y, size in placements:
            assert 0 <= x <= 112 - size and 0 <= y <= 112 - size and 18 <= size <= 29
            covered[y : y + size, x : x + size] += 1
            assert pixels[y : y + size, x : x + size].max() > 128
        assert covered.max() == 1 and pixels[covered == 0].max() == 0
    assert counts[0] == 0 and counts[1:].min() > 30


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path, scans: Scans) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        write_problems(tmp_path / name, TASKS["counting"], scans, num_train=40, num_eval=20, seed=seed, side=112)
    for name in ("train.json", "eval.json", "manifest.json", "images/train/00007.png"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other" / "train.json").read_bytes() != (folder / "train.json").read_bytes()


def test_a_call_that_does_not_end_leaves_no_rows_of_the_one_before(
    tmp_path: Path, scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows would be about images that are others by now."""
    arguments: dict[str, Any] = {"num_train": 3, "num_eval": 2, "side": 112}
    write_problems(tmp_path, TASKS["counting"], scans, seed=3, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("mmr1.digits.files.save_scans", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_problems(tmp_path, TASKS["counting"], scans, seed=4, **arguments)
    assert list(tmp_path.glob("*.json")) == []
    write_problems(tmp_path, TASKS["counting"], scans, seed=4, **arguments)
    assert len(load_problems(tmp_path / "train.json", root=tmp_path)) == 3


def test_scans_travel(folder: Path, tmp_path: Path, scans: Scans) -> None:
    copy = read_scans(folder / "scans.npz")
    assert (copy.images == scans.images).all() and (copy.labels == scans.labels).all()
    (tmp_path / "bad.npz").write_text("no")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(ConfigurationError, match="mmr1 data digits"):
            read_scans(tmp_path / name)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "counting"
    assert main(["digits", "--out", str(out), "--num-train", "8", "--num-eval", "4", "--canvas", "140"]) == 0
    assert main(["validate", str(out / "train.json")]) == 0
    assert "8 problems, all good" in capsys.readouterr().out
    (out / "images" / "train" / "00002.png").unlink()
    rows = (out / "train.json").read_text().splitlines()
    rows[6] = '{"problem": ""},'
    (out / "train.json").write_text("\n".join(rows))
    assert main(["validate", str(out / "train.json")]) == 2
    first, second, warning, last = capsys.readouterr().err.splitlines()
    assert f"{out}/train.json:4: key 'image'" in first and "does not exist" in first
    assert f"{out}/train.json:7: key 'problem'" in second
    assert warning.startswith(f"mmr1: warning: no row of {out}/train.json has a task: all were taken to be counting")
    assert last == f"mmr1: error: {out}/train.json: 2 of 8 rows are bad; repair or remove them"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digits"], "--out"),
        (["digits", "--out", "x", "--canvas", "120"], "canvas 120: must be a multiple of 28 .* try 140"),
        (["digits", "--out", "x", "--canvas", "56"], "try 112"),
        (["digits", "--out", "x", "--task", "ocr", "--canvas", "100"], "canvas 100: .* try 140"),
        (["digits", "--out", "x", "--task", "painting"], "invalid choice: 'painting'"),
        (["digits", "--out", "x", "--num-train", "-1"], "-1 is negative"),
        (["digits", "--out", "/proc/x/y"], "cannot be written"),
        (["validate", "none.json"], "No such file"),
        (["check"], "invalid choice: 'check'"),
    ],
)
def test_wrong_use(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmr1: error: ") and error.count("\n") == 1 and re.search(reason, error)
