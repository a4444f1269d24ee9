"""What a run leaves for people: result.json, reward.png, report.html and a table. Of an evaluation, the last two.

It reads the folder, knows no service and asks none: it works on the files of a finished run, of one that was cut, and
of one that still goes on.
"""

from mmr1.report.command import build, build_evaluation, main
from mmr1.report.result import RunResult
from mmr1.report.table import print_table

__all__ = ["RunResult", "build", "build_evaluation", "main", "print_table"]
