"""What a run leaves for people: result.json, reward.png, report.html and a table. Reads a run's folder, nothing else.

This package knows no service and asks none: it works on the files of a finished run, of one that was cut, and of one
that still goes on.
"""

from mmr1.report.command import build, main
from mmr1.report.result import RunResult
from mmr1.report.table import print_table

__all__ = ["RunResult", "build", "main", "print_table"]
