"""Parquet, Arrow and Hugging Face folders: the same problems as from JSON, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmr1.dataset import Keys, load_problems
from mmr1.errors import ConfigurationError
from mmr1.reading.files import data_files, dataset_folder
from mmr1.reading.problem_rows import BadRow, read_rows
from mmr1.records import Problem

ROWS: list[dict[str, Any]] = [
    {"problem": f"Question {index}?", "solution": str(index), "image": ["a.png", "b.png"], "task": "ocr"}
    for index in range(2500)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def arrow(path: Path, rows: list[dict[str, Any]], *, is_file: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return path


def saved_to_disk(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """What `datasets.Dataset.save_to_disk` leaves: two shards, and the order of them in state.json."""
    half = len(rows) // 2
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, shard in zip(names, (rows[:half], rows[half:]), strict=True):
        arrow(folder / name, shard)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def in_the_hubs_layout(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> Path:
    half = len(rows) // 2
    parquet(folder / "data" / f"{split}-00000-of-00002.parquet", rows[:half])
    parquet(folder / "data" / f"{split}-00001-of-00002.parquet", rows[half:])
    return folder


LAYOUTS = {
    "lines": lambda root: write(root / "rows.jsonl", "\n".join(map(json.dumps, ROWS))),
    "array": lambda root: write(root / "rows.json", json.dumps(ROWS)),
    "parquet": lambda root: parquet(root / "rows.parquet", ROWS),
    "row groups": lambda root: parquet(root / "rows", ROWS, row_group_size=700),
    "arrow stream": lambda root: arrow(root / "rows.arrow", ROWS),
    "arrow file": lambda root: arrow(root / "rows.arrow", ROWS, is_file=True),
    "saved to disk": lambda root: saved_to_disk(root / "saved", ROWS),
    "hub": lambda root: in_the_hubs_layout(root / "hub", ROWS),
    "hub, by split": lambda root: in_the_hubs_layout(root / "hub", ROWS) / "train",
    "numbered": lambda root: parquet(root / "train" / "0000.parquet", ROWS).parent,
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_problems(root: Path, layout: str) -> None:
    problems = load_problems(LAYOUTS[layout](root), root=root)
    expected = [Problem(i, row["problem"], row["solution"], tuple(row["image"]), "ocr") for i, row in enumerate(ROWS)]
    assert list(problems) == expected and [problems[index] for index in (0, 1023, 1024, -1)] == [
        expected[index] for index in (0, 1023, 1024, -1)
    ]
    assert list(problems[10:13]) == expected[10:13] and problems.tasks == {"ocr": 2500}
    assert problems.digest == load_problems(LAYOUTS["array"](root), root=root).digest


def test_a_tables_cells_keep_their_types(root: Path) -> None:
    boxes = [{"problem": "?", "solution": [{"bbox_2d": [1, 2, 3, 4], "label": "7"}], "image": "a.png"}]
    assert load_problems(parquet(root / "boxes.parquet", boxes), root=root)[0].solution == boxes[0]["solution"]
    counts = [{"problem": "?", "solution": 7, "image": "a.png", "task": None}]
    (problem,) = load_problems(parquet(root / "counts.parquet", counts), root=root, task="ocr")
    assert (problem.solution, problem.task) == (7, "ocr"), "an empty cell is a row without a task of its own"


def test_splits_are_named_like_files(root: Path) -> None:
    for split in ("train", "test"):
        in_the_hubs_layout(root / "hub", ROWS[:10], split)
        saved_to_disk(root / "saved" / split, ROWS[:10])
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for folder, listed in (("hub", "test, .*hub/train"), ("saved", "train, .*saved/test")):
        with pytest.raises(ConfigurationError, match=rf"{folder} has several splits; name one: .*{folder}/{listed}"):
            load_problems(root / folder, root=root)
        assert len(load_problems(root / folder / "test", root=root)) == 10
        assert dataset_folder(root / folder / "test") == root / folder
    for shard in (root / "hub" / "data").glob("test-*"):
        shard.rename(shard.with_stem(f"{shard.stem}-a0c2db6f9e84d371"))
    assert len(load_problems(root / "hub" / "test", root=root)) == 10
    with pytest.raises(ConfigurationError, match=r"hub has no split 'trian'; did you mean 'train'\?"):
        load_problems(root / "hub" / "trian", root=root)
    assert dataset_folder(root / "hub") == root / "hub" and dataset_folder(root / "x.json") == root


def lacks_a_shard(root: Path) -> Path:
    (in_the_hubs_layout(root / "hub", ROWS[:10]) / "data" / "train-00000-of-00002.parquet").unlink()
    return root / "hub"


def of_two_revisions(root: Path, other: str) -> Path:
    """As a second download into the same folder leaves them."""
    parquet(in_the_hubs_layout(root / "hub", ROWS[:10]) / "data" / other, ROWS[:5])
    return root / "hub"


def cut(path: Path, keep: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def renamed(rows: list[dict[str, Any]], **names: str) -> list[dict[str, Any]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


WRONG_FILES = {
    "cut parquet": (lambda root: cut(parquet(root / "a.parquet", ROWS)), "a.parquet: is not a whole Parquet file"),
    "empty parquet": (lambda root: write(root / "a.parquet", ""), "does not begin as a parquet file does; restore it"),
    "pointer": (
        lambda root: write(root / "a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "is a git-lfs pointer and not the file itself; run `git lfs pull`",
    ),
    "cut schema": (lambda root: cut(arrow(root / "a.arrow", ROWS), 0.0005), "a.arrow: is not a whole Arrow file"),
    "cut arrow": (
        lambda root: cut(arrow(root / "a.arrow", ROWS)),
        r"a.arrow: row 1001: cannot be read .*; rows after it were not read",
    ),
    "misspelt column": (
        lambda root: parquet(root / "a.parquet", renamed(ROWS, solution="solutoin")),
        r"column 'solution' is missing; did you mean 'solutoin'\? set answer_key",
    ),
    "missing columns": (
        lambda root: arrow(root / "a.arrow", renamed(ROWS, solution="x", image="y")),
        r"column 'solution' is missing \(and image\); it has \['problem', 'x', 'y', 'task'\]; set answer_key",
    ),
    "lacking shard": (lacks_a_shard, r"train-00000-of-00002.parquet is not there \(1 are missing\); download them"),
    **{
        f"shard of another revision ({other})": (
            lambda root, other=other: of_two_revisions(root, other),
            r"hub/data: train\S+ and train\S+ are not of one revision of split train; remove the files of one of them",
        )
        for other in (
            "train-00000-of-00003.parquet",
            "train-00001-of-00001.parquet",
            "train-00001-of-00002-a0c2db6f9e84d371.parquet",
            "train.parquet",
        )
    },
    "no dataset": (lambda root: root, "neither a state.json nor parquet files"),
    "no rows": (lambda root: without_rows(root / "a.parquet"), "a.parquet holds no problem"),
}


def without_rows(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS[:1]).slice(0, 0), path)
    return path


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_wrong_as_a_whole_is_one_line(root: Path, case: str) -> None:
    make, reason = WRONG_FILES[case]
    with pytest.raises(ConfigurationError, match=reason) as raised:
        load_problems(make(root), root=root)
    assert "\n" not in str(raised.value)


def test_all_bad_rows_of_a_table_are_named_by_row_and_key(root: Path) -> None:
    good = {"problem": "?", "solution": 0.5, "image": {"bytes": None, "path": "a.png"}}
    changes: list[dict[str, Any]] = [
        {},
        {"problem": None},
        {"solution": None},
        {"solution": float("nan")},
        {"image": None},
        {"image": {"bytes": None, "path": None}},
        {"image": {"bytes": b"", "path": None}},
        {},
    ]
    path = parquet(root / "a.parquet", [good | change for change in changes])
    bad = [row for row in read_rows(path, root=root, keys=Keys()) if isinstance(row, BadRow)]
    assert [(row.number, str(row).split("'")[1]) for row in bad] == [
        (2, "problem"),
        (3, "solution"),
        (4, "solution"),
        (5, "image"),
        (6, "image"),
        (7, "image"),
    ]
    assert str(bad[0]) == f"{path}: row 2: key 'problem' must be a text that is not empty"
    with pytest.raises(ConfigurationError, match=r"row 2: .* \(and 5 more bad rows: `mmr1 data validate"):
        load_problems(path, root=root)


def test_a_cell_that_is_not_utf8_is_its_own_rows_alone(root: Path) -> None:
    texts = pa.array([b"How many?", b"caf\xe9", b"How many?"]).view(pa.string())
    table = pa.table({"problem": texts, "solution": [1, 2, 3], "image": ["a.png"] * 3})
    pq.write_table(table, root / "a.parquet")
    found = list(read_rows(root / "a.parquet", root=root, keys=Keys()))
    assert [str(row) for row in found if isinstance(row, BadRow)] == [
        f"{root}/a.parquet: row 2: key 'problem' is not UTF-8"
    ]


def test_a_date_is_no_solution(root: Path) -> None:
    times = pa.array([0], pa.timestamp("s"))
    pq.write_table(pa.table({"problem": ["When?"], "solution": times, "image": ["a.png"]}), root / "a.parquet")
    with pytest.raises(ConfigurationError, match="row 1: key 'solution' holds a datetime; a solution is made of"):
        load_problems(root / "a.parquet", root=root)


def test_a_dataset_that_changes_is_read_anew_and_one_that_does_not_is_not(root: Path) -> None:
    path = write(root / "rows.json", json.dumps(ROWS[:3]))
    first = load_problems(path, root=root)
    assert load_problems(path, root=root) is first
    write(path, json.dumps(ROWS[:5]))
    assert len(load_problems(path, root=root)) == 5
    assert [problem.problem for problem in first] == ["Question 0?", "Question 1?", "Question 2?"], "it was set down"


def test_data_files_are_in_the_order_of_the_shards(root: Path) -> None:
    saved = saved_to_disk(root / "saved", ROWS[:4])
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00001-of-00002.arrow"}]}))
    assert [file.path.name for file in data_files(saved)] == ["data-00001-of-00002.arrow"]
    (saved / "state.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"state\.json does not say its _data_files"):
        data_files(saved)
