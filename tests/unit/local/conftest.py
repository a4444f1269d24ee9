"""Real processes for the supervisor's tests: small programs written into a temporary folder."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from mmr1.local.guard import Guard
from mmr1.local.logs import MergedLog
from mmr1.local.service import ProcessSpec


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(tmp_path: Path, screen: io.StringIO) -> Iterator[MergedLog]:
    with MergedLog(Console(file=screen, width=200), tmp_path / "logs") as merged:
        yield merged


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard() as watching:
        yield watching


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., ProcessSpec]:
    """program(name, source) -> ProcessSpec that runs it in `tmp_path`'s company (its path is argv[1])."""

    def make(name: str, source: str) -> ProcessSpec:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return ProcessSpec(name, [sys.executable, "-u", str(path), str(tmp_path)], dict(os.environ))

    return make
