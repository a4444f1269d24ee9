"""docs/rewards.md says what the reward server's tasks say."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

from mmr1_reward_server.rewards import builtin_tasks

ROOT = Path(__file__).resolve().parents[3]


def test_page_is_what_the_script_writes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_rewards_page.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_page_names_every_task_and_parameter() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    assert list(sections) == sorted(task.name for task in builtin_tasks())
    for task in builtin_tasks():
        named = [name for name in task.params.model_fields if f"| `{name}` |" in sections[task.name]]
        assert named == list(task.params.model_fields)
        assert task.formula in html.unescape(sections[task.name])
