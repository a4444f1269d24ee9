"""ImageStore against real files: what it accepts, what it refuses, and what the pixels become."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from mmr1 import image_files
from mmr1.images import ImageError, ImageStore
from mmr1.records import ImageRef


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    Image.new("RGB", (8, 4), "red").save(folder / "red.png")
    return folder


def pixels(store: ImageStore, name: str) -> np.ndarray:
    return np.asarray(store.open(store.ref(name)))


def test_ref_names_content_and_open_decodes_it(root: Path) -> None:
    store = ImageStore(root)
    ref = store.ref("./red.png")
    assert ref.path == "red.png" and len(ref.sha256) == 32
    image = store.open(ref)
    assert image.mode == "RGB" and image.size == (8, 4) == store.check("red.png")
    assert store.ref(root / "red.png") == ref


def test_changed_content_is_refused(root: Path) -> None:
    store = ImageStore(root)
    ref = store.ref("red.png")
    Image.new("RGB", (8, 4), "blue").save(root / "red.png")
    with pytest.raises(ImageError, match="changed since"):
        store.open(ref)


@pytest.mark.parametrize(
    "path", ["../outside.png", "/etc/passwd", "link.png", "linked/outside.png", "a/../../outside.png"]
)
def test_outside_the_root_is_refused(root: Path, path: str) -> None:
    Image.new("RGB", (2, 2)).save(root.parent / "outside.png")
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "linked").symlink_to(root.parent)
    store = ImageStore(root)
    for attempt in (store.ref, store.check, lambda p: store.open(ImageRef(p, b"\0" * 32))):
        with pytest.raises(ImageError, match="outside the image root"):
            attempt(path)


def test_links_that_stay_inside_work(root: Path) -> None:
    (root / "again.png").symlink_to("red.png")
    (root.parent / "alias").symlink_to(root)
    store = ImageStore(root.parent / "alias")
    assert store.ref("again.png").path == "again.png"
    assert store.ref(root.parent / "alias" / "red.png").path == "red.png"
    assert store.check("again.png") == (8, 4)


def test_what_is_no_image_is_refused_in_one_line(root: Path) -> None:
    (root / "text.png").write_text("not an image")
    (root / "cut.png").write_bytes((root / "red.png").read_bytes()[:45])
    (root / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    store = ImageStore(root)
    reasons = {"text.png": "is not one of", "cut.png": "is cut short", "script.eps": "is not one of"}
    reasons |= {"folder": "not a file", "pipe": "not a file", "none.png": "does not exist", "a\0b": "is not a path"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            store.check(name)
            store.ref(name)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_decompression_bombs_are_refused_before_decoding(root: Path) -> None:
    Image.new("1", (400, 300)).save(root / "large.png")
    assert ImageStore(root).check("large.png") == (400, 300)
    with pytest.raises(ImageError, match="above the bound of 100000"):
        ImageStore(root, max_pixels=100_000).check("large.png")
    text = PngInfo()
    text.add_text("note", "x" * 3_000_000, zip=True)
    Image.new("L", (2, 2)).save(root / "text_bomb.png", pnginfo=text)
    with pytest.raises(ImageError, match="cannot be decoded"):
        ImageStore(root).check("text_bomb.png")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.tiff", "cut.bmp", "cut.webp"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_file_that_was_cut_is_refused(root: Path, name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a library has told Pillow to make do with what there is: the rest would be gray, and nobody knew."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / name)
    whole = (root / name).read_bytes()
    ImageStore(root).check(name)
    (root / name).write_bytes(whole[: len(whole) * 3 // 5])
    store = ImageStore(root)
    with pytest.raises(ImageError, match=f"image {name}: (is cut short|cannot be decoded)") as caught:
        store.open(store.ref(name))
    if not name.endswith(("webp", "tiff")):  # whose decoders only say that they failed
        assert f"is cut short ({len(whole) * 3 // 5} bytes)" in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_every_orientation_is_turned_upright(root: Path) -> None:
    """The eight ways in which a camera can be held: what is stored is turned so that red is at the top left."""
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0], upright[1, 2] = (255, 0, 0), (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for orientation, pixels_stored in stored.items():
        image = Image.fromarray(np.ascontiguousarray(pixels_stored))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(root / "turned.png", exif=exif)
        assert (pixels(ImageStore(root), "turned.png") == upright).all(), orientation


def test_palettes_and_half_transparent_pixels(root: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    palette.save(root / "palette.png")
    palette.save(root / "palette.gif")
    for name in ("palette.png", "palette.gif"):
        assert pixels(ImageStore(root), name).tolist() == [[[10, 20, 30], [200, 100, 0]]]
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(root / "half.png")  # a fifth of black over white
    assert pixels(ImageStore(root), "half.png").tolist() == [[[204, 204, 204]]]


def test_orientation_is_applied(root: Path) -> None:
    image = Image.new("RGB", (6, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(root / "turned.jpg", exif=exif)
    store = ImageStore(root)
    assert store.open(store.ref("turned.jpg")).size == (2, 6) == store.check("turned.jpg")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(root: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (2, 2), 0)
        image.putpalette([0, 0, 0])
        image.save(root / "clear.png", transparency=0)
    else:
        Image.new(mode, (2, 2)).save(root / "clear.png")
    assert (pixels(ImageStore(root), "clear.png") == 255).all()


def test_sixteen_bits_scale_to_eight(root: Path) -> None:
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(deep).save(root / "deep.png")
    Image.fromarray(deep).save(root / "deep.tiff")
    for name in ("deep.png", "deep.tiff"):
        assert pixels(ImageStore(root), name)[0, :, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.zeros((2, 2), np.float32)).save(root / "float.tiff")
    with pytest.raises(ImageError, match="no fixed range"):
        ImageStore(root).check("float.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(root: Path, mode: str) -> None:
    Image.new("RGB", (2, 2), "white").convert(mode).save(root / "image.tiff")
    assert (pixels(ImageStore(root), "image.tiff") == 255).all()


def swapped_before_opening(monkeypatch: pytest.MonkeyPatch, swap: Callable[[], object]) -> None:
    """What a racing process does after the path was looked at and before it is opened."""
    real = os.open

    def late(*arguments: Any, **options: Any) -> int:
        monkeypatch.setattr(os, "open", real)
        swap()
        return real(*arguments, **options)

    monkeypatch.setattr(os, "open", late)


def test_a_file_that_becomes_a_link_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (2, 2)).save(root.parent / "outside.png")
    store = ImageStore(root)
    for attempt in (store.ref, store.check, store.num_pixels):
        (root / "red.png").unlink()
        Image.new("RGB", (8, 4), "red").save(root / "red.png")

        def swap() -> None:
            (root / "red.png").unlink()
            (root / "red.png").symlink_to(root.parent / "outside.png")

        swapped_before_opening(monkeypatch, swap)
        with pytest.raises(ImageError, match="cannot be read"):
            attempt("red.png")


def test_a_folder_that_becomes_a_link_leads_nowhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "inner").mkdir()
    Image.new("RGB", (8, 4)).save(root / "inner" / "a.png")
    (root.parent / "outside").mkdir()
    Image.new("RGB", (2, 2)).save(root.parent / "outside" / "a.png")

    def swap() -> None:
        (root / "inner").rename(root / "old")
        (root / "inner").symlink_to(root.parent / "outside")

    swapped_before_opening(monkeypatch, swap)
    with pytest.raises(ImageError, match="outside the image root"):
        ImageStore(root).check("inner/a.png")


def test_a_file_that_becomes_a_pipe_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap() -> None:
        (root / "red.png").unlink()
        os.mkfifo(root / "red.png")

    swapped_before_opening(monkeypatch, swap)
    with pytest.raises(ImageError, match="is not a file"):
        ImageStore(root).check("red.png")


def test_special_files_are_refused_without_being_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    (root / "zero.png").symlink_to("/dev/zero")
    store = ImageStore(root)
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *arguments, **_: opened.append(arguments))
    for name, reason in (("socket.png", "not a file"), ("zero.png", "outside the image root"), (".", "not a file")):
        for attempt in (store.ref, store.check, store.num_pixels):
            with pytest.raises(ImageError, match=reason):
                attempt(name)
    assert not opened


def test_files_that_are_too_long_or_grow_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (root / "red.png").stat().st_size
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", size)
    ImageStore(root).check("red.png")
    with (root / "red.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ImageError, match=f"has {size + 1} bytes, above the bound"):
        ImageStore(root).check("red.png")
    os.truncate(root / "red.png", size)
    real = os.fstat

    def grows(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        with (root / "red.png").open("ab") as file:
            file.write(b"x")
        return found

    monkeypatch.setattr(os, "fstat", grows)
    with pytest.raises(ImageError, match="above the bound"):
        ImageStore(root).ref("red.png")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_more_pixels_than_the_header_says_are_never_made(root: Path) -> None:
    """An 8 x 8 PNG whose data would fill 512 MiB: decoding ends with what the header promised."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    squeezer = zlib.compressobj(9)
    data = b"".join(squeezer.compress(bytes(2**20)) for _ in range(512)) + squeezer.flush()
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (root / "bomb.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert ImageStore(root).check("bomb.png") == (8, 8)
    except ImageError as error:
        assert "cannot be decoded" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_a_header_that_promises_too_much_is_refused_before_decoding(root: Path, ending: str) -> None:
    Image.new("RGB", (300, 200)).save(root / f"large.{ending}")
    store = ImageStore(root, max_pixels=59_999)
    with pytest.raises(ImageError, match="300 x 200 pixels, above the bound of 59999"):
        store.check(f"large.{ending}")


def test_a_machine_that_is_out_of_open_files_says_nothing_of_the_image(tmp_path: Path) -> None:
    """What stopped the reading passes; an image that is said to be at fault would cost its prompt for good."""
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    script = """
import os, resource, sys
from mmr1.image_files import LocalImages, UnreachableImageError
images = LocalImages(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    images.read("a.png")
except UnreachableImageError as error:
    print(error)
os.close(held.pop()), os.close(held.pop())
print(len(images.read("a.png")))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    size = (tmp_path / "a.png").stat().st_size
    assert done.stdout.splitlines() == ["image a.png: cannot be read (Too many open files)", str(size)]
