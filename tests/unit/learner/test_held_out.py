"""`mmr1 eval` with a rollout server that is played and a reward server that is real: every task, ends, and refusals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from PIL import Image

from mmr1.config.eval_options import EvalConfig
from mmr1.config.loading import load_config, load_options, save_config
from mmr1.errors import ConfigurationError
from mmr1.lifecycle import run_command
from mmr1.preflight import check_held_out
from mmr1.records import SCHEMA_VERSION, FinishReason, Group, PolicyVersion, Prompt, Rollout, VersionSpan
from mmr1.wire import group_to_message, prompt_from_message
from mmr1.wire.v1 import rollout_pb2 as pb
from mmr1.wire.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from mmr1_learner.held_out import command
from mmr1_learner.held_out.command import check, main
from tests.conftest import free_port

SIDE = 28  # of the image, which the model's processor enlarges
BOXES = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}, {"bbox_2d": [20, 0, 28, 10], "label": "4"}]
ROWS = [
    *({"problem": "How many?", "solution": number, "image": "a.png"} for number in range(1, 9)),
    {"problem": "Where?", "solution": [0, 0, 10, 10], "image": "a.png", "task": "grounding"},
    {"problem": "What?", "solution": "4 7 1 1", "image": "a.png", "task": "ocr"},
    {"problem": "All?", "solution": BOXES, "image": "a.png", "task": "detection"},
]


def as_said(prompt: Prompt) -> Any:
    """The solution as the model says it: boxes in pixels of the image as its processor has resized it."""
    factor = prompt.rewards[0].params.get("resized_size", [SIDE])[0] / SIDE

    def scaled(box: Any) -> list[float]:
        return [value * factor for value in box]

    if prompt.task == "detection":
        return [{**one, "bbox_2d": scaled(one["bbox_2d"])} for one in prompt.solution]
    return scaled(prompt.solution) if prompt.task == "grounding" else prompt.solution


class Answering(RolloutServiceServicer):
    """Answers each problem with its solution, `wrong` ones with another; `before` may refuse a call."""

    def __init__(self, state: str = "SERVES", wrong: int = 0) -> None:
        self.state, self.wrong = state, wrong
        self.first: list[str] = []  # states that it has before that one, each for one call
        self.version = PolicyVersion(3, 40)
        self.asked: list[Prompt] = []
        self.before: Callable[[int, Any], None] = lambda number, context: None
        self._lock = threading.Lock()
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        add_RolloutServiceServicer_to_server(self, self._grpc)
        self.address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()

    def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        state = self.first.pop(0) if self.first else self.state
        return pb.GetStatusResponse(
            schema_version=SCHEMA_VERSION,
            state=f"SERVER_STATE_{state}",
            version={"incarnation": self.version.incarnation, "number": self.version.number},
            model="m",
        )

    def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        prompt = prompt_from_message(request.prompt)
        with self._lock:
            self.asked.append(prompt)
            number = len(self.asked)
        self.before(number, context)
        answer = "9" if prompt.id.position < self.wrong else json.dumps(as_said(prompt)).strip('"')
        text = f"<answer>{answer}</answer>"
        span = VersionSpan(self.version, 0, 1)
        rollout = Rollout((7,), (-0.5,), (span,), text, FinishReason.STOP)
        return pb.GenerateResponse(
            group=group_to_message(Group(prompt, (1, 2), (rollout,) * prompt.num_generations, "r"))
        )

    def stop(self) -> None:
        self._grpc.stop(0)


@pytest.fixture
def server() -> Iterator[Answering]:
    playing = Answering(wrong=2)
    yield playing
    playing.stop()


@pytest.fixture(scope="module")
def reward_url() -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mmr1_reward_server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                break
        time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(20)


@pytest.fixture
def run(small_model: Path, tmp_path: Path, reward_url: str) -> Path:
    """A run's YAML file beside its data."""
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    (tmp_path / "eval.json").write_text(json.dumps(ROWS))
    document = {
        "model": str(small_model),
        "train_file": str(tmp_path / "train.json"),
        "eval_file": str(tmp_path / "eval.json"),
        "run_dir": str(tmp_path / "run"),
        "num_steps": 3,
        "per_device_batch_size": 7,  # divides nothing: no batch is made
        "reward_url": reward_url,
        "rewards": ["counting"],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "run.yaml"


def evaluate(run: Path, server: Answering, *options: str) -> int:
    return main([str(run), "--rollout_servers", server.address, *options])


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.parent / "run/eval/results.json").read_text())
    return found


def samples(run: Path) -> list[dict[str, Any]]:
    text = (run.parent / "run/eval/samples.jsonl").read_text()
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_every_task_through_a_running_server_and_again_without_asking(
    run: Path, server: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, server) == 0
    found = results(run)
    headlines = {
        task["task"]: (task["num_problems"], task["metrics"][task["headline"]]["value"]) for task in found["tasks"]
    }
    assert headlines == {"counting": (8, 0.75), "grounding": (1, 1.0), "ocr": (1, 1.0), "detection": (1, 1.0)}
    by_task = {task["task"]: task["metrics"] for task in found["tasks"]}
    assert by_task["counting"]["mae"]["value"] == pytest.approx((8 + 7) / 8)
    assert by_task["detection"]["ap"]["value"] == pytest.approx(1.0, abs=1e-12)
    assert found["policy_versions"] == "3.40" and found["mode"] == "greedy"
    lines = samples(run)
    assert [line["problem"] for line in lines] == list(range(11)), "in the order of the file, however they came"
    assert {"question", "prompt", "response", "parsed", "reward", "solution", "images"} <= lines[0].keys()
    table = (run.parent / "run/eval/results.md").read_text()
    assert "## counting: 8 problems, 1 answer each" in table and "| **accuracy** | 0.7500 |" in table
    assert "accuracy" in capsys.readouterr().out
    assert {prompt.sampling.temperature for prompt in server.asked} == {0.0}
    assert lines[8]["params"]["resized_size"] != [SIDE, SIDE] == lines[8]["image_size"], "boxes are converted"
    num_asked = len(server.asked)
    assert evaluate(run, server) == 0
    assert len(server.asked) == num_asked and results(run) == found


def test_samples_are_drawn_at_the_temperature_and_averaged(run: Path, server: Answering) -> None:
    (run.parent / "eval.json").write_text(json.dumps(ROWS[:8]))
    options = ["--eval_mode", "sampled", "--eval_samples", "3", "--temperature", "0.7", "--eval_sample_size", "4"]
    assert evaluate(run, server, *options) == 0
    assert {(p.sampling.temperature, p.num_generations) for p in server.asked} == {(0.7, 3)}
    assert len({prompt.sampling.seed for prompt in server.asked}) == len(server.asked) == 4
    (task,) = results(run)["tasks"]
    assert (task["num_problems"], task["num_samples"], task["metrics"]["accuracy"]["value"]) == (4, 3, 0.5)
    assert len(samples(run)) == 12


def test_an_evaluation_that_was_ended_goes_on_and_asks_nothing_twice(
    run: Path, server: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int, context: Any) -> None:
        if number > 6:
            end = time.monotonic() + 60
            while len(samples(run)) < 4 and time.monotonic() < end:
                time.sleep(0.02)
            context.abort(grpc.StatusCode.INTERNAL, "something broke")

    server.before = fail
    assert evaluate(run, server) == 1
    said = capsys.readouterr().out
    assert "INTERNAL: something broke" in said and "the same command goes on" in said
    kept = samples(run)
    assert 4 <= len(kept) <= 6 and not (run.parent / "run/eval/results.json").exists()
    with (run.parent / "run/eval/samples.jsonl").open("a") as file:
        file.write('{"problem": 10, "sample": 0, "ta')  # cut in the middle of a line
    server.asked, server.before = [], lambda number, context: None
    assert evaluate(run, server) == 0
    assert f"line {len(kept) + 1} is no answer" in (run.parent / "run/eval/logs/mmr1.log").read_text()
    asked = {prompt.id.position for prompt in server.asked}
    assert asked == set(range(11)) - {line["problem"] for line in kept} and len(asked) == len(server.asked)
    assert all(line in samples(run) for line in kept)
    assert f"{len(kept)} of 11 problems have been answered before" in capsys.readouterr().out


def test_answers_beside_a_damaged_identity_are_refused_before_anything_starts(
    run: Path, server: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, server, "--eval_sample_size", "1") == 0
    (run.parent / "run/eval/evaluation.json").write_text("")
    kept = samples(run)
    capsys.readouterr()
    assert run_command(lambda: evaluate(run, Answering(state="ACCEPTS_WEIGHTS"), "--eval_sample_size", "1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation.json cannot be read" in line and "give another --eval_dir" in line
    assert samples(run) == kept


def test_sigterm_ends_it_at_once_and_it_goes_on(run: Path, server: Answering) -> None:
    released = threading.Event()

    def hang(number: int, context: Any) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        released.wait(60)

    server.before = hang
    begun = time.monotonic()
    assert evaluate(run, server) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 50, "no answer is waited for"
    released.set()
    server.before = lambda number, context: None
    assert evaluate(run, server) == 0 and len(samples(run)) == len(ROWS)


def test_another_evaluation_does_not_go_on_with_these_answers(run: Path, server: Answering) -> None:
    assert evaluate(run, server, "--eval_sample_size", "2") == 0
    with pytest.raises(ConfigurationError, match=r"max_completion_length was 64 and is 5; .* another --eval_dir"):
        evaluate(run, server, "--eval_sample_size", "2", "--max_completion_length", "5")
    with pytest.raises(ConfigurationError, match=r"eval_file was 2 problems .* and is 3 problems"):
        evaluate(run, server, "--eval_sample_size", "3")
    server.version = PolicyVersion(3, 41)
    with pytest.raises(ConfigurationError, match=r"rollout_servers was m 3\.40 and is m 3\.41"):
        evaluate(run, server, "--eval_sample_size", "2")
    elsewhere = run.parent / "other"
    assert evaluate(run, server, "--eval_sample_size", "2", "--eval_dir", str(elsewhere)) == 0
    assert (elsewhere / "results.json").exists()


def test_a_server_that_pauses_is_waited_for(run: Path, server: Answering) -> None:
    def pause(number: int, context: Any) -> None:
        if number == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "this server is updating")

    server.before = pause
    assert evaluate(run, server, "--eval_sample_size", "1") == 0
    assert len(server.asked) == 2


def test_a_server_that_pauses_as_it_is_first_asked_is_waited_for_too(
    run: Path, server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "AGAIN_SECONDS", 0.01)
    server.first = ["PAUSED", "UPDATING"]
    assert evaluate(run, server, "--eval_sample_size", "1") == 0 and server.first == []
    server.state = "PAUSED"
    monkeypatch.setattr(command, "AWAY_SECONDS", 0.1)
    with pytest.raises(ConfigurationError, match="is in state paused"):
        evaluate(run, server, "--eval_sample_size", "1")


def test_a_row_that_cannot_be_scored_is_named_before_a_question_is_asked(run: Path, server: Answering) -> None:
    outside = {**ROWS[8], "solution": [0, 0, 5000, 9]}
    rows = [ROWS[0], {**ROWS[1], "solution": "a few"}, {**ROWS[2], "task": "countnig"}, outside]
    (run.parent / "eval.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigurationError, match=r"eval\.json: 3 of 4 rows cannot be scored") as caught:
        evaluate(run, server)
    assert [line.split(" cannot")[0].split(" ")[-1] for line in str(caught.value).splitlines()[1:]] == ["2", "3", "4"]
    assert server.asked == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solution": "the cup"}, "key 'solution' (of a row of task 'grounding') is a text, but not the JSON of a box"),
        ({"problem": f"In <box>[0, 0, {'9' * 400}, 4]</box>?"}, "key 'problem' holds a box with a number that is too"),
    ],
)
def test_boxes_that_no_model_could_say_are_named_before_anything_starts(
    run: Path, change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.parent / "eval.json"
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in [ROWS[0], {**ROWS[8], **change}]) + "\n]\n")
    assert run_command(lambda: main([str(run)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmr1: error: {file}:3: {reason}"), line
    folder = run.parent / "run/eval"
    assert not any((folder / name).exists() for name in ("config.yaml", "logs")), "something was started"
    file.write_text(json.dumps([ROWS[0]]))
    check(load_options(EvalConfig, run, []))


def test_boxes_need_a_model_whose_way_of_saying_them_is_known(run: Path, tmp_path: Path) -> None:
    """Where a held-out problem is about them: a run's rewards have no part in it."""
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/config.json").write_text('{"model_type": "llava"}')
    config = load_options(EvalConfig, run, ["--model", str(tmp_path / "llava"), "--rewards", "grounding"])
    with pytest.raises(ConfigurationError, match="how a llava says boxes is not known here; set coordinates"):
        check_held_out(config)
    (run.parent / "eval.json").write_text(json.dumps([ROWS[0]]))
    assert len(check_held_out(config)) == 1


def test_a_prompt_that_a_server_refuses_is_named_by_its_row(run: Path, server: Answering) -> None:
    server.before = lambda _, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "70 prompt tokens, above 64")
    with pytest.raises(ConfigurationError, match=r"eval\.json: row \d+: 70 prompt tokens"):
        evaluate(run, server)


def test_a_server_without_weights_or_out_of_reach_is_said(run: Path, server: Answering) -> None:
    server.state = "ACCEPTS_WEIGHTS"
    with pytest.raises(ConfigurationError, match="is in state accepts_weights; it serves when a learner has given it"):
        evaluate(run, server)
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1 does not answer \(unavailable\)"):
        main([str(run), "--rollout_servers", "127.0.0.1:1"])


def test_mistakes_of_options_are_named(run: Path) -> None:
    document = yaml.safe_load(run.read_text())
    with pytest.raises(ConfigurationError, match="needs a configuration file first"):
        main(["--eval_mode", "greedy"])
    with pytest.raises(ConfigurationError, match="every answer would be the same; set eval_mode to sampled"):
        main([str(run), "--eval_samples", "3"])
    with pytest.raises(ConfigurationError, match="'there' is no address; write HOST:PORT"):
        main([str(run), "--rollout_servers", "there"])
    run.write_text(yaml.safe_dump({name: value for name, value in document.items() if name != "eval_file"}))
    with pytest.raises(ConfigurationError, match="give --eval_file"):
        main([str(run)])


def test_what_is_started_reads_a_runs_configuration_without_training(run: Path, tmp_path: Path) -> None:
    more = ["--num_generations", "8", "--learner_processes", "3", "--redis_url", "redis://elsewhere/0"]
    config = load_options(
        EvalConfig, run, [*more, "--lora_rank", "4", "--lora_updates", "adapter", "--freeze_vision_tower"]
    )
    save_config(config.for_services(), tmp_path / "config.yaml")
    read = load_config(tmp_path / "config.yaml")
    assert (read.model, read.dtype, read.run_dir) == (config.model, "float32", config.folder)
    assert (read.redis_url, read.lora_rank, read.lora_updates) == (None, 0, "merged")
