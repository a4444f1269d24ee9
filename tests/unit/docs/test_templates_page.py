"""docs/templates.md says what the registry says, and the tasks that it names are the reward server's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmr1.template_registry import TEMPLATES
from mmr1_reward_server.rewards import builtin_tasks

ROOT = Path(__file__).resolve().parents[3]


def test_page_is_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_templates_page.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_template_is_read_by_real_tasks() -> None:
    tasks = {task.name for task in builtin_tasks()}
    assert [(name, task) for name, entry in TEMPLATES.items() for task in entry.tasks if task not in tasks] == []
