"""What a dataset's path stands for: one file, or the shards of a split in a Hugging Face folder.

A split is named like a file in its folder (`squad/train`), whichever of the two layouts the folder has: what
`save_to_disk` writes (arrow shards beside a state.json, one folder for each split), or what the hub keeps (parquet
shards named by their split). A file's format is told by its first bytes. This file reads no rows.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmr1.errors import ConfigurationError

Format = Literal["json", "parquet", "arrow"]

_FORMATS = "a JSON array, JSON Lines, Parquet or Arrow file, or a Hugging Face dataset folder"
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-[0-9a-f]+)?")  # older ones have a hash
_HEAD_BYTES = 64
_ARROW_HEADS = (b"ARROW1", b"\xff\xff\xff\xff")  # the file format, and the stream that save_to_disk writes
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class DataFile:
    path: Path
    format: Format

    def place(self, number: int) -> str:
        """How a row of it is named: by line in a text, by row in a table; both count from 1."""
        return f"{self.path}:{number}" if self.format == "json" else f"{self.path}: row {number}"


def dataset_folder(path: Path) -> Path:
    """Where a dataset's relative image paths begin: its own folder, or the folder of all splits that it is one of."""
    return path if path.is_dir() and not (path.parent / "dataset_dict.json").exists() else path.parent


def data_files(path: Path) -> list[DataFile]:
    """The files that hold a dataset's rows, in order.

    Raises:
        ConfigurationError: no such dataset, the split is not named, or a shard is missing or of another revision.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.suffix and not path.exists() and (splits := _splits(path.parent)):
        if path.name not in splits:
            near = difflib.get_close_matches(path.name, splits, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(splits)}"
            raise ConfigurationError(f"dataset {path.parent} has no split {path.name!r}; {hint}")
        return splits[path.name]
    return [DataFile(path, _format(path))]


def _of_folder(folder: Path) -> list[DataFile]:
    if (folder / "dataset_dict.json").exists():
        raise _splits_to_name(folder, _listed(folder / "dataset_dict.json", "splits"))
    if (folder / "state.json").exists():
        names = [str(entry["filename"]) for entry in _listed(folder / "state.json", "_data_files")]
        return [DataFile(folder / name, _format(folder / name)) for name in names]
    splits = _splits(folder)
    if len(splits) > 1:
        raise _splits_to_name(folder, list(splits))
    if not splits:
        raise ConfigurationError(
            f"dataset {folder} is a folder with neither a state.json nor parquet files; give {_FORMATS}"
        )
    return next(iter(splits.values()))


def _splits_to_name(folder: Path, splits: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"dataset {folder} has several splits; name one: " + ", ".join(f"{folder}/{s}" for s in splits)
    )


def _listed(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} does not say its {key} ({error!r}); save the dataset again") from None
    return list(found)


def _splits(folder: Path) -> dict[str, list[DataFile]]:
    """By split, the parquet shards that lie in a folder or in its `data`; files named by number are one split."""
    paths = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    splits: dict[str, list[Path]] = {}
    for path in paths:
        shard = _SHARD.fullmatch(path.stem)
        split = shard["split"] if shard else path.parent.name if path.stem.isdigit() else path.stem
        splits.setdefault(split, []).append(path)
    for split, shards in splits.items():
        _require_all_shards(split, shards)
    return {split: [DataFile(path, _format(path)) for path in shards] for split, shards in splits.items()}


def _require_all_shards(split: str, paths: list[Path]) -> None:
    """Each shard of one division, once. Files of two divisions, of two revisions say, hold rows twice."""
    shards = {path: shard for path in paths if (shard := _SHARD.fullmatch(path.stem))}
    if not shards:
        return
    first = next(iter(shards))
    total = int(shards[first]["total"])
    found: dict[int, Path] = {}
    for path in paths:
        shard = shards.get(path)
        number = int(shard["number"]) if shard and int(shard["total"]) == total else None
        if number is None or number in found:
            other = first if number is None else found[number]
            raise ConfigurationError(
                f"dataset {path.parent}: {other.name} and {path.name} are not of one revision of split {split}; remove "
                "the files of one of them"
            )
        found[number] = path
    lacking = [number for number in range(total) if number not in found]
    if lacking:
        raise ConfigurationError(
            f"dataset {paths[0].parent}: split {split} has {total} files and {split}-{lacking[0]:05}-of-{total:05}"
            f".parquet is not there ({len(lacking)} are missing); download them"
        )


def _format(path: Path) -> Format:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ConfigurationError(f"dataset {path}: {error.strerror}; give {_FORMATS}") from None
    if head.startswith(_POINTER):
        raise ConfigurationError(f"dataset {path} is a git-lfs pointer and not the file itself; run `git lfs pull`")
    found: Format = "parquet" if head.startswith(b"PAR1") else "arrow" if head.startswith(_ARROW_HEADS) else "json"
    if path.suffix in (".parquet", ".arrow") and path.suffix != f".{found}":
        raise ConfigurationError(f"dataset {path} does not begin as a {path.suffix[1:]} file does; restore it")
    return found


__all__ = ["DataFile", "Format", "data_files", "dataset_folder"]
