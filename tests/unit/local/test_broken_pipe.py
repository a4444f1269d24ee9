"""A command whose reader has enough ends quietly; a connection that breaks is still an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAMS = {
    "print": "print('x' * 100_000); return 0",
    "a little, written at the end": "print('x'); return 0",
    "rich": "from rich.console import Console; Console().print('x'); return 0",
    "an error": "from mmr1.errors import ConfigurationError; raise ConfigurationError('some')",
}


def run_unread(arguments: list[str], *, errors_too: bool = False) -> subprocess.CompletedProcess[bytes]:
    """With an output that nobody reads any more; errors_too: its stderr as well."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        stderr = writing if errors_too else subprocess.PIPE
        return subprocess.run([sys.executable, *arguments], stdout=writing, stderr=stderr, check=False)
    finally:
        os.close(writing)


@pytest.mark.parametrize("body", PROGRAMS.values(), ids=PROGRAMS)
def test_any_command(body: str) -> None:
    program = (
        f"import sys\nfrom mmr1.lifecycle import run_command\ndef main():\n    {body}\nsys.exit(run_command(main))"
    )
    done = run_unread(["-c", program], errors_too="Error" in body)
    assert done.returncode == 128 + signal.SIGPIPE and not done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "--help"]])
def test_the_command_line(arguments: list[str]) -> None:
    done = run_unread(["-m", "mmr1", *arguments])
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == b""


def test_another_pipe_is_an_error() -> None:
    program = (
        "import sys, os\nfrom mmr1.lifecycle import run_command\n"
        "def main():\n    r, w = os.pipe(); os.close(r); os.write(w, b'x')\nsys.exit(run_command(main))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr
