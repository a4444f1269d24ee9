"""Images that a dataset holds as bytes: written once, by whoever comes first, and looked at like any other."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmr1.config import RunConfig
from mmr1.dataset import eval_problems, load_problems, train_problems
from mmr1.errors import ConfigurationError
from mmr1.images import ImageStore
from mmr1.reading.embedded import EmbeddedImages


def png(shade: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), shade).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, images: list[Any], type_: Any = None) -> Path:
    columns = {"problem": ["How many?"] * len(images), "solution": list(range(len(images)))}
    pq.write_table(pa.table({**columns, "image": pa.array(images, type_)}), path)
    return path


FORMS = {
    "feature": lambda image: {"bytes": image, "path": "1.png"},
    "bytes": lambda image: image,
    "features": lambda image: [{"bytes": image, "path": None}, {"bytes": png(200), "path": None}],
    "list of bytes": lambda image: [image, png(200)],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_written_once_below_the_root_and_opened_as_any_image(tmp_path: Path, form: str) -> None:
    path = parquet(tmp_path / "a.parquet", [FORMS[form](png(shade)) for shade in (0, 100, 0)])
    first, second, third = load_problems(path, root=tmp_path)
    assert first.images == third.images != second.images
    assert len(first.images) == (2 if form in ("features", "list of bytes") else 1)
    written = sorted(file.relative_to(tmp_path).as_posix() for file in (tmp_path / "embedded_images").rglob("*.png"))
    assert written == sorted({*first.images, *second.images})
    store = ImageStore(tmp_path)
    image = store.open(store.ref(second.images[0]))
    assert image.size == (8, 8) and image.getpixel((0, 0)) == (100, 100, 100)


def test_a_feature_without_bytes_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    path = parquet(tmp_path / "a.parquet", [{"bytes": None, "path": "a.png"}, {"bytes": png(0), "path": None}])
    assert load_problems(path, root=tmp_path)[0].images == ("a.png",)


def test_what_is_there_is_not_written_again_and_what_was_cut_is(tmp_path: Path) -> None:
    images = EmbeddedImages(tmp_path)
    name = images.name(png(7))
    file = tmp_path / name
    before = file.stat().st_mtime_ns, file.stat().st_ino
    assert EmbeddedImages(tmp_path).name(png(7)) == name and (file.stat().st_mtime_ns, file.stat().st_ino) == before
    file.write_bytes(b"cut")
    assert images.name(png(7)) == name and file.read_bytes() == png(7)
    assert [other.name for other in file.parent.iterdir()] == [file.name], "nothing is left beside it"


def test_several_may_write_at_once(tmp_path: Path) -> None:
    names: list[str] = []
    writers = [
        threading.Thread(target=lambda: names.extend(EmbeddedImages(tmp_path).name(png(shade)) for shade in range(40)))
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    files = [file for file in (tmp_path / "embedded_images").rglob("*") if file.is_file()]
    assert len(names) == 160 and len(set(names)) == len(files) == 40
    for file in files:
        ImageStore(tmp_path).check(file)


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", r"row 2: key 'image': image \(embedded\): is not one of PNG, JPEG"),
        (png(0, 200)[:-40], r"row 2: key 'image': image embedded_images/.*: is cut short"),
        (bomb(), r"row 2: key 'image': image .*pixels"),
    ],
)
def test_bytes_that_are_no_image_are_named_by_row(tmp_path: Path, content: bytes, reason: str) -> None:
    path = parquet(tmp_path / "a.parquet", [{"bytes": image, "path": None} for image in (png(0), content)])
    with pytest.raises(ConfigurationError, match=reason):
        load_problems(path, root=tmp_path)


def test_a_root_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "embedded_images").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"cannot be written to \(.*\); set image_root to a folder that can"):
        load_problems(parquet(tmp_path / "a.parquet", [png(0)]), root=tmp_path)


def test_both_files_of_a_run_have_their_images_below_its_one_root(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / name).mkdir()
    train = parquet(tmp_path / "train" / "a.parquet", [png(0)])
    held_out = parquet(tmp_path / "eval" / "a.parquet", [png(1)])
    required: dict[str, Any] = {"model": "m", "num_steps": 1, "per_device_batch_size": 8}
    config = RunConfig(**required, train_file=train, eval_file=held_out)
    assert config.resolved_image_root == tmp_path / "train"
    images = [*train_problems(config)[0].images, *eval_problems(config)[0].images]
    assert all((tmp_path / "train" / image).is_file() for image in images) and len(set(images)) == 2
