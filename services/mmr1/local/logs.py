"""What `mmr1 up` prints and keeps: one merged, prefixed log on the terminal, and one file per process.

Knows lines and names. It neither starts processes nor judges what they say.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
TAIL_LINES = 20
OWN_NAME = "mmr1"


class MergedLog:
    """Lines of many processes. With `quiet`, only warnings of the supervisor itself reach the terminal."""

    def __init__(self, console: Console, folder: Path, *, quiet: bool = False) -> None:
        self.console = console
        self._folder = folder
        self._quiet = quiet
        self._files: dict[str, TextIO] = {}
        self._tails: dict[str, deque[str]] = {}
        self._width = 0

    def __enter__(self) -> MergedLog:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def open(self, name: str) -> None:
        """Start (or go on with) the log of the process `name`: a file, a colour, a place in the prefix column."""
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.log").open("a", buffering=1)
            self._tails[name] = deque(maxlen=TAIL_LINES)
            self._width = max(self._width, len(name))

    def line(self, name: str, text: str) -> None:
        """One line that process `name` has written."""
        self._keep(name, text)
        if not self._quiet:
            self._print(name, text)

    def say(self, text: str) -> None:
        """The supervisor's own news; quiet runs keep it in the file."""
        self._keep(OWN_NAME, f"{time.strftime('%H:%M:%S')} {text}")
        if not self._quiet:
            self._print(OWN_NAME, text)

    def warn(self, text: str) -> None:
        """The supervisor's own news that a person must see."""
        self._keep(OWN_NAME, f"{time.strftime('%H:%M:%S')} {text}")
        self._print(OWN_NAME, text, style="bold yellow")

    def tail(self, name: str) -> list[str]:
        """The last lines of process `name`, oldest first."""
        return list(self._tails.get(name, ()))

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _keep(self, name: str, text: str) -> None:
        self.open(name)
        self._files[name].write(text + "\n")
        self._tails[name].append(text)

    def _print(self, name: str, text: str, style: str = "") -> None:
        colour = "bold" if name == OWN_NAME else COLOURS[list(self._files).index(name) % len(COLOURS)]
        line = (
            Text(f"{name:>{self._width}} ", style=colour)
            .append("| ", style="dim")
            .append(Text.from_ansi(text, style=style))
        )
        self.console.print(line, soft_wrap=True)
