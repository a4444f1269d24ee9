"""The cache of images takes nothing for a while: no prompt is dead for it, it is said, and sampling goes on by itself.

Redis, the reward app and the file system are real: the cache is a small tmpfs that is filled or made read-only, or a
folder that is closed to everybody.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import structlog

from mmr1.errors import ConfigurationError
from mmr1.image_cache import ImageCache
from mmr1.images import ImageStore
from mmr1.records import Group
from mmr1.remote_images import RemoteRoot
from mmr1_rollout_server import worker
from tests.unit.rollout_server.test_worker import Bench, reward_server, until, working

NUM_GIVEN_BACK = 10  # more than `max_deliveries` of each prompt, were they counted
GIVEN_BACK = ("mmr1_rollout_prompts_total", {"end": "given_back"})


def mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, for the cache alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
async def bench(redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose images are below a URL. The learner, who names them, has another cache."""
    bench = Bench(redis_url, tmp_path, reward_server())
    root = f"/{uuid4().hex}"
    memory = fsspec.filesystem("memory")
    memory.pipe(f"{root}/a.png", (tmp_path / "a.png").read_bytes())
    bench.store = ImageStore(RemoteRoot(f"memory:/{root}", tmp_path / "learners"))
    bench.feed(0, 1, 2)
    bench.store = ImageStore(RemoteRoot(f"memory:/{root}", tmp_path / "disk"))
    yield bench
    memory.rm(root, recursive=True)
    await bench.redis.aclose()


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def empty(disk: Path) -> None:
    (disk / "ballast").unlink()


def close(disk: Path) -> None:
    assert mount("-o", "remount,ro", str(disk)).returncode == 0


def reopen(disk: Path) -> None:
    assert mount("-o", "remount,rw", str(disk)).returncode == 0


async def comes_through(bench: Bench, monkeypatch: pytest.MonkeyPatch, says: str, mend: Callable[[], None]) -> None:
    """The prompts are given back again and again while it lasts, and none is dead when it is mended."""
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.05)
    sample = bench.metrics.registry.get_sample_value
    groups: list[Group] = []
    await bench.serve()
    with structlog.testing.capture_logs() as logs:
        async with working(bench):
            await until(lambda: (sample(*GIVEN_BACK) or 0) >= NUM_GIVEN_BACK)
            assert bench.sampler.num_started == 0 and bench.queue.ledger().dead == {}
            mend()
            await until(lambda: groups.extend(bench.queue.read(10)) or len(groups) == 3)
    ledger = bench.queue.ledger()
    assert ledger.dead == {} and ledger.balanced
    said = [line for line in logs if line["event"] == "image_unreachable"]
    assert len(said) >= NUM_GIVEN_BACK and all(line["log_level"] == "warning" for line in said)
    assert all(f"/disk ({says}" in line["reason"] for line in said), said[0]


@pytest.mark.parametrize(
    ("break_it", "mend", "says"),
    [
        (fill, empty, "No space left on device); make room there, or set image_cache to another folder"),
        (close, reopen, "Read-only file system); let this user write there, or set image_cache to another folder"),
    ],
)
async def test_a_cache_that_takes_nothing_kills_no_prompt(
    bench: Bench,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path], None],
    mend: Callable[[Path], None],
    says: str,
) -> None:
    break_it(disk)
    await comes_through(bench, monkeypatch, says, lambda: mend(disk))


async def test_nor_does_one_that_is_closed_to_this_user(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir(mode=0o500)
    if os.access(tmp_path / "disk", os.W_OK):
        pytest.skip("no folder is closed to root")
    await comes_through(
        bench, monkeypatch, "Permission denied); let this user", lambda: (tmp_path / "disk").chmod(0o700)
    )


async def test_one_that_is_no_folder_ends_the_server_and_not_the_prompts(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("in the way")
    await bench.serve()
    with pytest.raises(ConfigurationError, match=r"image_cache .*/disk: images cannot be kept there"):
        await asyncio.wait_for(bench.work(), 15)
    ledger = bench.queue.ledger()
    assert ledger.dead == {} and ledger.pending == 3 and ledger.balanced


def test_a_smaller_bound_makes_room_on_a_disk_that_is_full(disk: Path) -> None:
    """The remedy that people try first: without it the cache would have to write before it may remove anything."""
    copies = [bytes([number]) * 4096 for number in range(32)]
    large = ImageCache(disk, 2**30)
    with pytest.raises(OSError, match="No space left"):
        for copy in copies:
            large.put(copy, None)
    with pytest.raises(OSError, match="No space left"):
        ImageCache(disk, 2**30).put(b"new", None)
    small = ImageCache(disk, 8192)
    small.put(b"new" * 1000, "name")
    assert small.by_name("name") == b"new" * 1000
    assert sum(path.stat().st_size for path in (disk / "contents").rglob("*") if path.is_file()) <= 8192
