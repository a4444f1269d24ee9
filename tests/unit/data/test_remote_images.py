"""Images below a URL, and the copies of them: in fsspec's memory, and on moto's S3 server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import fsspec
import pytest
from fsspec.registry import _registry
from PIL import Image

from mmr1 import image_files, remote_images
from mmr1.config import RunConfig
from mmr1.data_cli import main
from mmr1.dataset import eval_problems, train_problems
from mmr1.errors import ConfigurationError
from mmr1.image_cache import ImageCache
from mmr1.images import ImageError, ImageStore, UnreachableImageError
from mmr1.records import ImageRef
from mmr1.remote_images import RemoteRoot
from mmr1_rollout_server.preflight import check as check_rollout_server
from tests.models import small_config


def png(colour: str = "red", size: tuple[int, int] = (8, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def memory() -> Iterator[tuple[str, Any]]:
    """A URL of its own in this process's memory, and the file system that it is in."""
    file_system, root = fsspec.filesystem("memory"), f"/{uuid4().hex}/images"
    file_system.pipe({f"{root}/red.png": png(), f"{root}/in/blue.png": png("blue"), f"{root}/../secret.png": png()})
    yield f"memory:/{root}", file_system
    file_system.rm(root.rpartition("/")[0], recursive=True)


def remote(url: str, cache: Path, **options: Any) -> ImageStore:
    return ImageStore(RemoteRoot(url, cache, **options))


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "contents").rglob("*") if path.is_file())


def test_images_are_named_opened_and_measured_as_local_ones_are(memory: tuple[str, Any], tmp_path: Path) -> None:
    url, _ = memory
    (tmp_path / "local" / "in").mkdir(parents=True)
    (tmp_path / "local" / "in" / "blue.png").write_bytes(png("blue"))
    there, here = remote(url, tmp_path / "cache"), ImageStore(tmp_path / "local")
    assert there.ref("in/blue.png") == there.ref(Path("./in/../in/blue.png")) == here.ref("in/blue.png")
    image = there.open(there.ref("in/blue.png"))
    assert image.size == (8, 4) == there.check("in/blue.png") == there.size("in/blue.png")
    assert image.getpixel((0, 0)) == (0, 0, 255) and there.num_pixels("in/blue.png") == 32


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "in/../../secret.png", "/etc/passwd", "..", "file:///etc/passwd", "memory://x/a.png", "a::b"],
)
def test_no_name_leads_out_of_the_root(memory: tuple[str, Any], tmp_path: Path, path: str) -> None:
    store = remote(memory[0], tmp_path)
    for attempt in (store.ref, store.check, store.size, store.relative, lambda p: store.open(ImageRef(p, b"\0" * 32))):
        with pytest.raises(ImageError, match=r"outside the image root|not a path below the image root"):
            attempt(path)


def test_what_is_no_image_or_too_large_is_refused(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file_system = memory
    store = remote(url, tmp_path)
    root = url.removeprefix("memory:/")
    file_system.pipe(f"{root}/text.png", b"no image")
    reasons = {"text.png": "is not one of", "in": "is not a file", "none.png": "does not exist below memory://"}
    reasons["a\0b"] = "is not a path"
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            store.check(name)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    with pytest.raises(ImageError, match="above the bound of 31"):
        ImageStore(RemoteRoot(url, tmp_path), max_pixels=31).check("red.png")
    for module in (image_files, remote_images):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", len(png()) - 1)
    with pytest.raises(ImageError, match="bytes, above the bound"):
        remote(url, tmp_path / "other").check("red.png")


def test_a_server_that_sends_more_than_it_said_is_cut_at_the_bound(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file_system = memory
    monkeypatch.setattr(type(file_system), "info", lambda *_, **__: {"size": None, "type": "file", "name": "red.png"})
    for module in (image_files, remote_images):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match="has 11 bytes, above the bound of 10"):
        remote(url, tmp_path).check("red.png")


def test_a_file_is_fetched_once_and_again_when_it_changes(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file_system = memory
    opened: list[str] = []
    real = type(file_system).open

    def counted(self: Any, path: str, mode: str = "rb", **more: Any) -> Any:
        if mode == "rb":
            opened.append(path)
        return real(self, path, mode, **more)

    monkeypatch.setattr(type(file_system), "open", counted)
    first = remote(url, tmp_path)
    ref = first.ref("red.png")
    for store in (first, remote(url, tmp_path)):
        assert store.ref("red.png") == ref and store.open(ref).size == (8, 4)
    assert len(opened) == 1 and len(kept(tmp_path)) == 1
    file_system.pipe(f"{url.removeprefix('memory:/')}/red.png", png("green"))
    assert first.ref("red.png") != ref and len(opened) == 2
    # What was named is still what is opened: its bytes are here. Elsewhere they are not, and the change is seen.
    assert first.open(ref).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ImageError, match="changed since it was named"):
        remote(url, tmp_path / "elsewhere").open(ref)


def test_without_a_word_on_its_state_a_file_is_fetched_each_time_it_is_named(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file_system = memory
    monkeypatch.setattr(type(file_system), "info", lambda *_, **__: {"size": len(png()), "type": "file"})
    store = remote(url, tmp_path)
    before = store.ref("red.png")
    file_system.pipe(f"{url.removeprefix('memory:/')}/red.png", png("lime"))
    assert store.ref("red.png") != before


def test_a_damaged_copy_is_fetched_again(memory: tuple[str, Any], tmp_path: Path) -> None:
    """In place, as a disk does it; also one that is found by its name, which is how each new run finds it."""
    store = remote(memory[0], tmp_path)
    ref = store.ref("red.png")
    (copy,) = kept(tmp_path)
    for look in (lambda: store.open(ref).size, lambda: store.check("red.png"), lambda: store.size("red.png")):
        copy.write_bytes(b"damaged")
        assert look() == (8, 4)
        assert copy.read_bytes() == png()
    copy.write_bytes(b"damaged")
    assert store.ref("red.png") == ref


@pytest.mark.parametrize("damage", [b"", b"0" * 63, b"z" * 64, png()], ids=["empty", "cut", "no hex", "image"])
def test_a_damaged_name_is_as_good_as_none(memory: tuple[str, Any], tmp_path: Path, damage: bytes) -> None:
    store = remote(memory[0], tmp_path)
    ref = store.ref("red.png")
    (name,) = [path for path in (tmp_path / "names").rglob("*") if path.is_file()]
    name.write_bytes(damage)
    assert store.ref("red.png") == ref and name.read_text() == ref.sha256.hex()


def test_the_cache_stays_below_its_bound_and_keeps_what_was_read_last(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, max_bytes=100_000)
    contents = [bytes([index]) * 10_000 for index in range(40)]
    for index, content in enumerate(contents):
        cache.put(content, f"name {index}")
        time.sleep(0.002)  # times of reading are what decides
        assert cache.by_hash(hashlib.sha256(contents[0]).digest()) == contents[0], "read all the time"
        assert cache.by_name(f"name {index}") == content, "just written"
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= 110_000
    assert cache.by_name("name 1") is None and cache.by_hash(hashlib.sha256(contents[1]).digest()) is None
    names = [path for path in (tmp_path / "names").rglob("*") if path.is_file()]
    assert {path.read_text() for path in names} == {path.name for path in kept(tmp_path)}, "names go with their copies"


def test_a_cache_may_be_shared_and_written_by_many_at_once(memory: tuple[str, Any], tmp_path: Path) -> None:
    url, file_system = memory
    names = [f"{index}.png" for index in range(40)]
    file_system.pipe({f"{url.removeprefix('memory:/')}/{name}": png(size=(9, i + 1)) for i, name in enumerate(names)})
    stores = [remote(url, tmp_path, cache_bytes=500) for _ in range(8)]  # a few files: they go all the time

    def read(store: ImageStore) -> list[tuple[int, int]]:
        return [store.open(store.ref(name)).size for name in names * 3]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, stores)) == [[(9, index + 1) for index in range(40)] * 3] * 8
    assert not [path for path in tmp_path.rglob(".writing-*")]


def test_a_cache_that_is_no_folder_is_named(memory: tuple[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ConfigurationError, match=r"image_cache .*/file: images cannot be kept there \(Not a directory\)"
    ):
        remote(memory[0], tmp_path / "file").ref("red.png")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "let this"), (errno.EIO, "see to that")],
)
@pytest.mark.parametrize("verb", ["put", "by_hash", "by_name"])
def test_what_fails_in_the_cache_is_not_the_images_fault(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, verb: str
) -> None:
    store = remote(memory[0], tmp_path)
    ref = remote(memory[0], tmp_path / "elsewhere").ref("red.png")
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, verb, Mock(side_effect=OSError(number, os.strerror(number))))
        with pytest.raises(UnreachableImageError, match=f"cannot be kept below .*{remedy}.*, or set image_cache to"):
            store.open(ref) if verb == "by_hash" else store.ref("red.png")
    assert store.open(ref).size == (8, 4)


def test_a_run_reads_its_images_from_a_url(memory: tuple[str, Any], tmp_path: Path) -> None:
    """Both files are here, their images there; names are relative to the URL."""
    row = '{"problem": "How many?", "solution": 1, "image": "%s"}'
    (tmp_path / "train.json").write_text(row % "in/blue.png")
    (tmp_path / "eval.json").write_text(row % "red.png")
    files = {"train_file": str(tmp_path / "train.json"), "eval_file": str(tmp_path / "eval.json")}
    config = small_config(tmp_path, **files, image_root=memory[0], image_cache=tmp_path / "cache")
    assert [problem.images for problem in train_problems(config)] == [("in/blue.png",)]
    assert [problem.images for problem in eval_problems(config)] == [("red.png",)]
    assert config.resolved_image_root == RemoteRoot(memory[0], tmp_path / "cache", 10 * 2**30)
    assert len(kept(tmp_path / "cache")) == 2
    again = RunConfig(**config.model_dump(mode="json"))
    assert again.resolved_image_root == config.resolved_image_root, "as config.yaml brings it to the rollout server"
    (tmp_path / "train.json").write_text(row % "none.png")
    with pytest.raises(
        ConfigurationError, match=r"train\.json:1: key 'image': image none\.png: does not exist below mem"
    ):
        train_problems(config)


def test_datasets_are_converted_and_validated_against_a_url(
    memory: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    url, _ = memory
    scenes = [{"image_filename": name, "objects": [{}] * 3} for name in ("red.png", "in/blue.png", "none.png")]
    (tmp_path / "scenes.json").write_text(json.dumps({"scenes": scenes}))
    out = str(tmp_path / "out")
    assert main(["convert", "clevr", str(tmp_path / "scenes.json"), "--images", url, "--out", out]) == 0
    said = capsys.readouterr().out
    assert "1 left out: the image is not there" in said and f"set image_root: {url}" in said
    assert main(["validate", f"{out}/train.json", "--image-root", url]) == 0
    assert "2 problems, all good" in capsys.readouterr().out
    assert len(kept(tmp_path / "home" / "mmr1" / "images")) == 2


def test_a_file_url_is_the_folder_with_all_its_protection(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "a.png").write_bytes(png())
    (tmp_path / "a folder" / "link.png").symlink_to("/etc/hostname")
    config = small_config(tmp_path, image_root=f"file://{tmp_path}/a%20folder")
    assert config.resolved_image_root == tmp_path / "a folder" == config.image_root
    assert ImageStore(f"file://localhost{tmp_path}").root == tmp_path
    store = ImageStore(f"file://{tmp_path}/a%20folder")
    assert store.check("a.png") == (8, 4)
    with pytest.raises(ImageError, match="outside the image root"):
        store.check("link.png")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://bucket", "image_root nowhere://bucket: Protocol not known: nowhere"),
        ("simplecache::memory://x", "give one plain URL, without '::'"),
        ("https://host/images?key=1", "give one plain URL"),
        *(
            (url, r"image_root \w+(::)?\w+://\.\.\.: a user or a password in it would be written")
            for url in (
                "ftp://user:word@host/images",
                "https://word@host/images",
                "https://user:wo/rd@host/images",
                "https://user:word@host/images?key=word",
                "simplecache::https://user:word@host/images",
            )
        ),
        ("file://host/images", r"image_root file://\.\.\.: a host stands after file://; .*file:///FOLDER"),
        ("file://images/photos", "a host stands after file://"),
        ("https://host/images?signature=word", r"image_root https://\.\.\.: give one plain URL"),
        ("https://host/images#word", r"image_root https://\.\.\.: give one plain URL"),
    ],
)
def test_a_url_that_is_no_root_is_refused(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ImageStore(small_config(tmp_path, image_root=url).resolved_image_root)
    assert "word" not in str(caught.value).replace("password", "") and "rd@" not in str(caught.value)


@pytest.mark.parametrize("root", ["folder", "folder of rows", "URL"])
@pytest.mark.parametrize("image", ["https://me:hidden@host/a.png", "https://host/a.png?signature=hidden"])
def test_a_row_that_names_a_url_is_told_without_its_secrets(
    memory: tuple[str, Any], tmp_path: Path, root: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"problem": "?", "solution": 1, "image": image}))
    options = {"folder": [], "folder of rows": ["--image_dir", str(tmp_path)], "URL": ["--image_root", memory[0]]}
    assert main(["validate", str(tmp_path / "train.json"), *options[root]]) == 2
    said = capsys.readouterr().err
    assert "train.json:1: key 'image': image https://" in said and "is not a path below the image root" in said
    assert "hidden" not in said and "me:" not in said


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3fs", "botocore", "aiobotocore"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # another test may have opened a bucket
    with pytest.raises(ConfigurationError, match="image_root s3://bucket: a package is missing; pip install s3fs"):
        RemoteRoot("s3://bucket").file_system()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real S3 server over loopback with a bucket."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        port = next(line.rpartition(":")[2].split()[0] for line in server.stderr if "Running on" in line)
        drain = threading.Thread(target=server.stderr.read, daemon=True)
        drain.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        file_system = fsspec.filesystem("s3", skip_instance_cache=True)
        file_system.mkdir("photos")
        file_system.pipe({"photos/images/red.png": png(), "photos/secret.png": png()})
        yield file_system
    finally:
        server.terminate()
        server.wait(10)
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_buckets_images(s3: Any, tmp_path: Path) -> None:
    store = remote("s3://photos/images", tmp_path)
    ref = store.ref("red.png")
    assert ref.sha256 == hashlib.sha256(png()).digest() and store.open(ref).size == (8, 4)
    s3.pipe("photos/images/red.png", png("blue", (9, 9)))
    assert store.ref("red.png") != ref and store.open(store.ref("red.png")).size == (9, 9)
    assert len(kept(tmp_path)) == 2 and store.open(ref).size == (8, 4)
    for path, reason in (("../secret.png", "outside"), ("none.png", "does not exist")):
        with pytest.raises(ImageError, match=reason):
            store.ref(path)


def test_a_rollout_server_is_told_what_its_root_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmr1_rollout_server.preflight.check_model", lambda _: None)
    with pytest.raises(ConfigurationError, match="image_root nowhere://bucket: Protocol not known"):
        check_rollout_server(small_config(tmp_path, image_root="nowhere://bucket"), "rollout-0", 0, 0)
