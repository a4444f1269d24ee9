"""reward_server/README.md and docs/peers.md say what the reward server says: options, tasks, routes, answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmr1_reward_server import adapters
from mmr1_reward_server.app import create_app
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.settings import Settings, parse_settings

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "reward_server" / "README.md").read_text(encoding="utf-8")
PEERS = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
# `curl ... /v1/score -d 'BODY'`, and the indented JSON that follows.
EXCHANGES = re.findall(r"/v1/score -d '([^']+)'\n\n((?:    .*\n)+)", README)
# `POST /route`, the body, and the answer: the two objects of the indented block.
PEERS_EXCHANGES = re.findall(r"    POST (\S+)\n((?:    .*\n)+)", PEERS)


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of all tables."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_option_is_in_the_table_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    table = [row for row in rows(README) if row[0].startswith("`--")]
    assert {option for row in table for option in re.findall(r"--[a-z-]+", row[0])} == options
    for name, field in Settings.model_fields.items():
        row = next(row for row in table if f"`--{name.replace('_', '-')}`" in row[0])
        if field.default not in (None, (), False):
            assert f"`{field.default}`" in row[1], name


def test_every_task_is_in_a_table_with_its_floor() -> None:
    floors = {}
    for first, *cells in rows(README):
        if link := re.match(r"\[(\w+)\]\(\.\./docs/rewards\.md#(\w+)\)", first):
            assert link[1] == link[2]
            floors[link[1]] = next(cell for cell in cells if re.match(r"-?\d", cell))
    assert list(floors) == [task.name for task in builtin_tasks()]
    for task in builtin_tasks():
        assert re.split("[ ;]", floors[task.name])[0] == f"{task.floor:g}", task.name


def test_every_dialect_and_adapter_is_named() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    plain = [
        path for path, methods in paths.items() if "{" not in path and "peers" in next(iter(methods.values()))["tags"]
    ]
    assert len(plain) > 10
    assert [path for path in plain if f"{path}`" not in PEERS] == []
    functions = [name for name in adapters.__all__ if name[0].islower()]
    assert [name for name in functions if f"`{name}`" not in PEERS] == []


async def answer(settings: Settings, path: str, body: Any) -> Any:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as http,
    ):
        response = await http.post(path, json=body)
    assert response.status_code == 200
    return response.json()


async def test_what_curl_shows_is_what_the_server_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One exchange with the server's own tasks, one with the plugin that the page defines."""
    plugin = next(code for code in re.findall(r"```python\n(.+?)```", README, re.DOTALL) if "@reward" in code)
    (tmp_path / "my_rewards.py").write_text(plugin, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(EXCHANGES) == 2
    settings = Settings(workers=1, reward=("my_rewards:angle",))
    for asked, answered in EXCHANGES:
        assert await answer(settings, "/v1/score", json.loads(asked)) == json.loads(answered)


@pytest.mark.parametrize(("path", "block"), PEERS_EXCHANGES, ids=[path for path, _ in PEERS_EXCHANGES])
async def test_what_the_peers_page_shows_is_what_the_server_answers(path: str, block: str) -> None:
    asked, end = json.JSONDecoder().raw_decode(block.strip())
    answered = json.loads(block.strip()[end:])
    assert await answer(Settings(workers=1), path, asked) == answered


def test_the_peers_page_has_exchanges() -> None:
    assert len(PEERS_EXCHANGES) == 2
