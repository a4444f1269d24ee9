"""A running server against its own /openapi.json: schemathesis asks every route, the peers' included, right and wrong.

Whatever it sends, there is no 5xx, no status that is not documented, and no answer of another form or content type;
what the schema excludes is refused. Run by scripts/test_reward_alone.sh, where all extras are installed.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from mmr1_reward_server.app import create_app
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings

COMMAND = Path(sys.executable).parent / "mmr1-reward-server"
NUM_EXAMPLES = 25
# Of one request, on a machine that is busy with others: far beyond an item's deadline, which is shortened below.
SECONDS = 30

CONFIG = schemathesis.Config.from_dict(
    {
        "seed": 1,
        "generation": {"max-examples": NUM_EXAMPLES, "deterministic": True},
        "request-timeout": SECONDS,
        # No schema says all that must hold: lists of one length, the label that belongs to a task.
        "checks": {"positive_data_acceptance": {"enabled": False}},
    }
)
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)
examples = itertools.cycle(task.example.item.model_dump(mode="json") for task in builtin_tasks() if task.example)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's. In the end it must stop cleanly, and must have logged no failure."""
    log = tmp_path_factory.mktemp("server") / "log"  # a pipe that nobody reads would fill, and stop the server
    options = ("--port", "0", "--workers", "1", "--item-deadline-seconds", "2")
    with log.open("w") as output:
        process = subprocess.Popen([COMMAND, *options], stdout=output)
    while not (listening := re.search(r"event=listening .*port=(\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.group(1)}"
    process.terminate()
    code, rest = process.wait(20), log.read_text()
    assert (code, "level=error" in rest, "traceback" in rest) == (0, False, False), rest


@schema.hook("map_body")
def about_real_tasks(context: Any, body: Any) -> Any:
    """Half of the items of a right request are about tasks that there are: what is made up has to reach the scorers."""
    items = body.get("items") if isinstance(body, dict) else None
    for item in items if isinstance(items, list) else ():
        example = next(examples)
        if isinstance(item, dict) and isinstance(item.get("response"), str) and len(item["response"]) % 2:
            item.update({key: example[key] for key in ("task", "solution", "params")})
    return body


def test_the_document_is_the_one_that_is_served(url: str) -> None:
    assert httpx.get(f"{url}/openapi.json", trust_env=False).json() == schema.raw_schema


@schema.parametrize()
def test_every_route(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url)


def test_every_task_was_reached(url: str) -> None:
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    scored = re.findall(r'mmr1_reward_items_total\{outcome="\w+",task="(\w+)"\} [1-9]', metrics)
    assert set(scored) == {*(task.name for task in builtin_tasks()), "unknown"}
