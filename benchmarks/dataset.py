"""What a large dataset costs: resident memory with a million rows against ten thousand, and the time to open it.

    python benchmarks/dataset.py                       # some minutes
    python benchmarks/dataset.py --rows 100000         # a smaller large one

Each figure is of a process of its own, which opens the dataset as a run does (every row checked, no image opened),
reads a thousand positions of its data order, and then every row. It is held against the standard library: json.loads of
each line into a list. Times are the process's own; only the ratios within one run mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = 10_000
POSITIONS = 1000
FORMATS = ("lines", "array", "parquet", "arrow")
FILES = {"lines": "rows.jsonl", "array": "rows.json", "parquet": "rows.parquet", "arrow": "rows.arrow"}


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Questions of 40 to 100 characters, boxes as solutions, ten thousand different images, two tasks."""
    rng = random.Random(0)
    for index in range(count):
        box = [rng.randrange(640) for _ in range(4)]
        question = f"Where is thing number {index} of the picture? " + "Look closely. " * rng.randrange(5)
        task = "grounding" if index % 3 else "detection"
        yield {"problem": question, "solution": box, "image": f"train2017/{index % 10_000:012}.jpg", "task": task}


def write(folder: Path, count: int) -> None:
    """Each format once; Parquet as one row group, the hardest for a reader that may not hold all of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    with (folder / FILES["lines"]).open("w") as lines, (folder / FILES["array"]).open("w") as array:
        for index, row in enumerate(rows(count)):
            text = json.dumps(row)
            lines.write(text + "\n")
            array.write(("[\n" if index == 0 else ",\n") + text)
        array.write("\n]\n")
    table = pa.Table.from_pylist(list(rows(count)))
    pq.write_table(table, folder / FILES["parquet"], row_group_size=count)
    with pa.ipc.new_stream(folder / FILES["arrow"], table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)


def measure(path: Path) -> dict[str, float]:
    """In this process: seconds to open, microseconds of one row, seconds of all rows, and the most memory it had."""
    from mmr1.data_order import DataOrder
    from mmr1.dataset import load_problems

    started = time.process_time()
    problems = load_problems(path, root=path.parent, check_images=False)
    opened = time.process_time()
    order = DataOrder(len(problems), 0)
    for position in range(POSITIONS):
        assert problems[order.index(position)].images
    looked_up = time.process_time()
    assert problems.digest and sum(1 for _ in problems) == len(problems)
    return {
        "open": opened - started,
        "row_us": (looked_up - opened) / POSITIONS * 1e6,
        "all": time.process_time() - looked_up,
        "megabytes": peak_megabytes(),
    }


def measure_list(path: Path) -> dict[str, float]:
    """The standard library's way: all rows in memory."""
    started = time.process_time()
    with path.open() as lines:
        held = [json.loads(line) for line in lines]
    assert held
    return {"open": time.process_time() - started, "megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """Of this process since it began; what getrusage says may be its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def in_a_process(kind: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", kind, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(folder: Path, count: int) -> None:
    limit = in_a_process("list", folder / "large" / FILES["lines"])
    least = in_a_process("list", folder / "small" / FILES["lines"])
    print(f"{'':8}  MB, large  MB, small  ratio  s to open  / list  us a row  s, all rows")
    for kind in FORMATS:
        large = in_a_process(kind, folder / "large" / FILES[kind])
        small = in_a_process(kind, folder / "small" / FILES[kind])
        megabytes, other, opened = large["megabytes"], small["megabytes"], large["open"]
        print(
            f"{kind:8} {megabytes:10.1f} {other:10.1f} {megabytes / other:6.2f} {opened:10.1f} "
            f"{opened / limit['open']:7.1f} {large['row_us']:9.0f} {large['all']:12.1f}"
        )
    ratio = limit["megabytes"] / least["megabytes"]
    print(f"{'a list':8} {limit['megabytes']:10.1f} {least['megabytes']:10.1f} {ratio:6.2f} {limit['open']:10.1f}")
    print(f"large: {count} rows, small: {SMALL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, path = arguments.measure
        print(json.dumps((measure_list if kind == "list" else measure)(Path(path))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, count in (("large", arguments.rows), ("small", SMALL)):
            write(folder / size, count)
        report(folder, arguments.rows)


if __name__ == "__main__":
    main()
