"""How far an evaluation has come: a bar on a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

_LINES = 10  # of an evaluation, where there is no terminal


class Progress:
    """Use as a context manager around the asking; `num_done` are there already."""

    def __init__(self, console: Console, num_problems: int, num_done: int) -> None:
        self._console = console
        self._num_problems = num_problems
        self._said = num_done
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("problems", total=num_problems, completed=num_done)

    def __enter__(self) -> Self:
        self._bar.start()
        if self._said:
            self._console.print(f"{self._said} of {self._num_problems} problems have been answered before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, num_done: int) -> None:
        self._bar.update(self._task, completed=num_done)
        step = max(1, self._num_problems // _LINES)
        if not self._console.is_terminal and (num_done - self._said >= step or num_done == self._num_problems):
            self._said = num_done
            self._console.print(f"{num_done} of {self._num_problems} problems", highlight=False)
