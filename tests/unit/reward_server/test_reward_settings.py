"""Options and log lines."""

from __future__ import annotations

import json
import logging

import pytest

from mmr1_reward_server.logs import StructuredFormatter
from mmr1_reward_server.settings import Settings, SettingsError, parse_settings


def test_defaults_and_options() -> None:
    assert parse_settings([]) == Settings()
    settings = parse_settings(["--port", "0", "--item-deadline-seconds", "0.5", "--access-log"])
    assert (settings.port, settings.item_deadline_seconds, settings.access_log) == (0, 0.5, True)
    assert parse_settings(["--reward", "a:b", "--workers", "3", "--reward", "c:d"]).reward == ("a:b", "c:d")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--port", "many"], "--port: Input should be a valid integer"),
        (["--port", "65536"], "--port: Input should be less than or equal to 65535"),
        (["--max-items", "0"], "--max-items: "),
        (["--max-items", "9", "--max-pending-items", "8"], "max_pending_items (8) is below max_items (9)"),
        (["--max-pending-bytes", "1"], "max_pending_bytes (1) is below max_body_bytes (33554432)"),
        (["--workers", "0"], "--workers: Input should be greater than 0"),
        (["--api-key", "secret"], "unrecognized arguments: --api-key"),
        (["--prot", "1"], "unrecognized arguments: --prot"),
        (["--port"], "argument --port: expected one argument"),
    ],
)
def test_wrong_options_are_one_line(argv: list[str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in Settings.model_fields)


def test_log_lines_cannot_be_forged() -> None:
    record = logging.makeLogRecord({"msg": "scorer failed", "levelname": "ERROR"})
    record.fields = {"item": "1\nlevel=info event=fine", "port": 8000}
    line = StructuredFormatter(as_json=False).format(record)
    assert "\n" not in line
    assert 'event="scorer failed" service=reward item="1\\nlevel=info event=fine" port=8000' in line
    assert json.loads(StructuredFormatter(as_json=True).format(record))["item"] == "1\nlevel=info event=fine"
