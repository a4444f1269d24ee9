"""The `mmr1` command as people call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def mmr1(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmr1", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_help_is_quick_and_names_every_command() -> None:
    """Quick because nothing heavy is imported."""
    result = mmr1("--help")
    assert result.returncode == 0
    for command in ("up", "train", "demo", "doctor", "data", "ledger", "report"):
        assert f"\n  {command} " in result.stdout
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mmr1", "--help"], capture_output=True, text=True, check=True
    ).stderr
    for heavy in ("pydantic", "redis", "grpc", "numpy", "rich", "yaml", "torch"):
        assert f" {heavy}\n" not in loaded


@pytest.mark.parametrize("name", ["up", "train"])
def test_up_help_lists_every_option(name: str) -> None:
    from mmr1.config import RunConfig

    result = mmr1(name, "--help")
    assert result.returncode == 0
    for name in RunConfig.model_fields:
        assert f"--{name} (" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upp"], "unknown command 'upp'"),
        (["up", "--num_steps", "3"], "needs a configuration file"),
        (["up", "missing.yaml"], "configuration missing.yaml"),
        (["train", "--seed", "1"], "mmr1 train needs a configuration file"),
        (["ledger"], "mmr1 ledger: the following arguments are required: run"),
        (["ledger", "run", "--redis-url", "redis://127.0.0.1:1/0"], "Connection refused"),
        (["demo", "painting"], "invalid choice: 'painting'"),
        (["report", "missing"], "missing"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    result = mmr1(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("mmr1: error: ") and words in result.stderr


def test_the_ledger_of_a_run_that_redis_does_not_know_is_one_line(redis_url: str) -> None:
    result = mmr1("ledger", "nobody", "--redis-url", redis_url)
    assert result.returncode == 2 and not result.stdout
    [line] = result.stderr.splitlines()
    assert line == (
        f"mmr1: error: run 'nobody' is not in the Redis at {redis_url}; it holds none; give the run's name and "
        "--redis-url"
    )


def test_the_demo_needs_the_repository(tmp_path: Path) -> None:
    result = mmr1("demo", "counting", cwd=tmp_path)
    assert result.returncode == 2
    assert "repository's root" in result.stderr


def test_a_wrong_option_leaves_the_earlier_demo_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo"
    run_dir.mkdir()
    (run_dir / ".demo").touch()
    (run_dir / "result.json").write_text("{}")
    data = ("--train_file", str(tmp_path / "train.json"), "--eval_file", str(tmp_path / "eval.json"))
    for name in ("train.json", "eval.json"):
        (tmp_path / name).write_text('[{"problem": "How many?", "solution": 1}]')
    result = mmr1("demo", "counting", "--run_dir", str(run_dir), "--model", "./nope", *data)
    assert result.returncode == 2 and "./nope" in result.stderr
    assert (run_dir / "result.json").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    result = mmr1("demo", "counting", "--run_dir", str(foreign), *data)
    assert result.returncode == 2 and "holds something that is no demo" in result.stderr
    assert (foreign / "thesis.tex").exists()


@pytest.mark.engine
def test_doctor_finds_everything_here() -> None:
    result = mmr1("doctor")
    assert result.returncode == 0, result.stdout
    for name in ("torch", "vllm", "deepspeed", "redis-server", "g++"):
        assert name in result.stdout
    assert "everything that is needed is here" in result.stdout
