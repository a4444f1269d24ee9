"""`mmr1 doctor`: what this machine has, what is missing, and the command that mends it.

Engines are imported in processes of their own with a time-out, so that one that hangs or crashes is a line in a table.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import CommandParser
from mmr1.local.guard import Guard
from mmr1.local.plan import has_cuda
from mmr1.local.ports import ports_of, require_free
from mmr1.local.process import ChildProcess
from mmr1.local.redis_server import find_redis_server

IMPORT_SECONDS = 120.0
STOP_SECONDS = 2.0
ENOUGH_MEMORY_GIB = 6.0
ENOUGH_CORES = 2
SETUP = "make setup"

# Name -> what prints its version. The processors of Qwen-VL models need torchvision to be importable.
ENGINES = {
    "torch": "import torch; print(torch.__version__)",
    "torchvision": "import torchvision.transforms.v2; print(torchvision.__version__)",
    "transformers": "from transformers import AutoProcessor; import transformers; print(transformers.__version__)",
    "vllm": "import vllm; from vllm import LLM; print(vllm.__version__)",
    "deepspeed": "import deepspeed; print(deepspeed.__version__)",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` is a command or one sentence; findings that are not `needed` do not fail the check."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True


def main(argv: Sequence[str]) -> int:
    """Print the table. Returns 0 when nothing that is needed is missing, else 1."""
    CommandParser(prog="mmr1 doctor", description="Check this machine.").parse_args(argv)
    console = Console()
    with console.status("importing the engines"):
        findings = [*machine(), *asyncio.run(engines()), *tools()]
    table = Table()
    for column in ("", "what", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]missing[/]" if finding.needed else "[yellow]note[/]"
        table.add_row(mark, finding.what, finding.detail, "" if finding.ok else finding.remedy)
    console.print(table)
    missing = [finding.what for finding in findings if finding.needed and not finding.ok]
    console.print(f"missing: {', '.join(missing)}" if missing else "everything that is needed is here")
    return 1 if missing else 0


def machine() -> list[Finding]:
    """Interpreter, cores, memory, instructions, accelerator."""
    version = platform.python_version()
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cuda, avx2 = has_cuda(os.environ), "avx2" in _cpu_flags()
    return [
        Finding(
            "Python 3.11 or 3.12", sys.version_info[:2] in ((3, 11), (3, 12)), version, "PYTHON=python3.11 make setup"
        ),
        Finding("cores", cores >= ENOUGH_CORES, str(cores), "two or more are advised", needed=False),
        Finding(
            "memory",
            memory >= ENOUGH_MEMORY_GIB,
            f"{memory:.1f} GiB",
            f"{ENOUGH_MEMORY_GIB:.0f} GiB or more are advised",
            needed=False,
        ),
        Finding("AVX2", cuda or avx2, "yes" if avx2 else "no", "vLLM on a CPU needs it"),
        Finding("CUDA", True, "a device" if cuda else "none: everything runs on the CPU"),
    ]


async def engines() -> list[Finding]:
    """Import each engine in a process of its own, two at a time."""
    slots = asyncio.Semaphore(2)
    with Guard() as guard:

        async def limited(name: str, source: str) -> Finding:
            async with slots:
                return await _import(name, source, guard)

        return list(await asyncio.gather(*(limited(name, source) for name, source in ENGINES.items())))


def tools() -> list[Finding]:
    """Programs, compiled extensions and ports."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return [
        _redis(),
        _program("g++", shutil.which("g++"), "apt-get install -y g++"),
        _program("ninja", shutil.which("ninja", path=programs), SETUP),
        Finding("Python's headers", headers.exists(), str(headers), "apt-get install -y python3-dev"),
        _libnuma(),
        _shared_memory_collectives(),
        _ports(),
    ]


async def _import(name: str, source: str, guard: Guard) -> Finding:
    lines: list[str] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not has_cuda(os.environ):
        environment["DS_ACCELERATOR"] = "cpu"
    child = ChildProcess.start([sys.executable, "-c", source], environment, guard, lines.append)
    try:
        async with asyncio.timeout(IMPORT_SECONDS):
            code = await child.wait()
    except TimeoutError:
        await child.stop(STOP_SECONDS)
        return Finding(name, False, f"its import takes more than {IMPORT_SECONDS:.0f} s", SETUP)
    last = lines[-1] if lines else f"exit code {code}"
    return Finding(name, code == 0, last, SETUP)


def _redis() -> Finding:
    try:
        return Finding("redis-server", True, str(find_redis_server()))
    except ConfigurationError:
        return Finding("redis-server", False, "none", f"{SETUP}, or apt-get install -y redis-server")


def _libnuma() -> Finding:
    """vLLM's CPU kernels link to it. Without it vLLM imports with a warning and fails once it computes."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return Finding("libnuma", has_cuda(os.environ), "none", "apt-get install -y libnuma1")
    return Finding("libnuma", True, "libnuma.so.1")


def _program(name: str, path: str | None, remedy: str) -> Finding:
    return Finding(name, path is not None, path or "none", remedy)


def _shared_memory_collectives() -> Finding:
    """DeepSpeed compiles these at its first start when `make setup` has not."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
    built = sorted(root.glob("**/deepspeed_shm_comm.so"))
    detail = str(built[0]) if built else "not compiled: the first run spends two minutes on it"
    return Finding("DeepSpeed's shm_comm", bool(built) or has_cuda(os.environ), detail, SETUP, needed=False)


def _ports() -> Finding:
    """The default ports; a run can move each."""
    options = RunConfig.model_construct(
        **{n: f.get_default(call_default_factory=True) for n, f in RunConfig.model_fields.items()}
    )
    ports = ports_of(options)
    try:
        require_free(ports)
    except ConfigurationError as error:
        return Finding("default ports", False, str(error), "stop the other run or move the port", needed=False)
    return Finding("default ports", True, ", ".join(str(port.number) for port in ports))


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
