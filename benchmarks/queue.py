"""`python benchmarks/queue.py`: the queue's figures, each as a ratio to its limit. queue_figures.py measures them.

This file knows one thing: the standard library has a module of the same name, which Python would look for here first
whenever a program of this folder runs.
"""

import importlib.util
import runpy
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER]
    runpy.run_path(str(FOLDER / "queue_figures.py"), run_name="__main__")
else:  # imported: whoever asks for `queue` means the standard library's
    _spec = importlib.util.spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "queue.py")
    assert _spec is not None and _spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
