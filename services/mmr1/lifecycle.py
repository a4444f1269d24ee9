"""How a process of ours begins and ends: its exit code, and its answer to SIGTERM and Ctrl-C.

Knows nothing of what the process does between.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from mmr1.errors import CONFIGURATION_ERROR, AwayError, ConfigurationError


def run_command(command: Callable[[], int]) -> int:
    """Run an entry point; a ConfigurationError becomes one line on stderr and exit code 2, an AwayError one and 1.

    Whoever reads our output may have enough of it (`mmr1 ... | head`): then it ends without a word, with the code of a
    process that SIGPIPE has ended. The signal itself stays ignored: of a service's connection it must be an error.
    """
    try:
        exit_code = _answer(command)
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:
        if not (closed := [stream for stream in (sys.stdout, sys.stderr) if _nobody_reads(stream)]):
            raise
        for stream in closed:  # what is still to be written must not be tried again at the interpreter's end
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # rich has done the same, and would end with 1
            raise
    return 128 + signal.SIGPIPE


def _nobody_reads(stream: TextIO) -> bool:
    """Whether it is a pipe or connection whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):  # no file behind it, or a closed one
        return False


def _answer(command: Callable[[], int]) -> int:
    try:
        return command()
    except ConfigurationError as error:
        print(f"mmr1: error: {error}", file=sys.stderr, flush=True)
        return CONFIGURATION_ERROR
    except AwayError as error:
        print(f"mmr1: error: {error}; when it is back, the same command goes on", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class CommandParser(argparse.ArgumentParser):
    """argparse, whose complaints are ConfigurationErrors: one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}; `{self.prog} --help` says more")


class StopRequest:
    """Set by the first SIGTERM or Ctrl-C; a second one sets `urgent`: stop waiting for anything.

    Made inside a running event loop, on the main thread.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.urgent = asyncio.Event()
        self.signal: signal.Signals | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal if self.signal else 0

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            self.urgent.set()
        self.signal = self.signal or number
        self.requested.set()
