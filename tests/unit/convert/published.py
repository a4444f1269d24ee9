"""Small files in the form of published annotations, drawn here; and the command as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from mmr1.data_cli import main


def pictures(folder: Path, **sizes: tuple[int, int]) -> Path:
    """PNG files by name, of a width and height."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (index * 40 % 256, 90, 160)).save(folder / f"{name}.png")
    return folder


def written(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def convert(kind: str, file: Path, out: Path, *options: str, images: Path | str | None = None) -> int:
    """`mmr1 data convert`; the images are in `images` beside the file unless said."""
    return main(
        ["convert", kind, str(file), "--images", str(images or file.parent / "images"), "--out", str(out), *options]
    )


def rows(out: Path, name: str = "train") -> list[dict[str, Any]]:
    """What was written, after `mmr1 data validate` has found nothing wrong with it."""
    assert main(["validate", str(out / f"{name}.json")]) == 0
    found: list[dict[str, Any]] = json.loads((out / f"{name}.json").read_text())
    return found
