"""The reward server where nothing else is installed: what is there, what the command does, and a score of every task.

Run by scripts/test_reward_alone.sh in an environment of the server's own, without extras and without pytest, so it
knows nothing but Python and the server's wire.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "mmr1-reward-server"
ABSENT = ("torch", "vllm", "grpc", "redis", "transformers", "mmr1", "mmr1_learner", "mmr1_rollout_server", "pytest")
DISTRIBUTIONS = {"grpc": "grpcio", "mmr1_learner": "mmr1-learner", "mmr1_rollout_server": "mmr1-rollout-server"}

OBJECTS = [{"bbox_2d": [0, 0, 10, 10], "label": "dog"}]
VLMR1_OBJECTS = f"<answer>```json\n{json.dumps(OBJECTS)}\n```</answer>"
# Whatever takes an extra: task, response, solution, params.
TAKES_EXTRA = {
    "math": [
        ("accuracy", r"\frac{1}{2}", "0.5", {}),
        ("accuracy", "1", "1", {"method": "math"}),
        ("r1v_accuracy", "0.50", "0.5", {}),
        ("r1v_accuracy", "0.50", "0.5", {"bug_compatible": True}),
    ],
    "coco": [
        ("detection", json.dumps(OBJECTS), OBJECTS, {"score": "coco_ap"}),
        ("detection", json.dumps(OBJECTS), OBJECTS, {"score": "coco_ap50"}),
        ("vlmr1_od_ap", VLMR1_OBJECTS, VLMR1_OBJECTS, {}),
        ("vlmr1_od_ap", VLMR1_OBJECTS, VLMR1_OBJECTS, {"score": "ap50", "bug_compatible": True}),
    ],
}


def check_environment() -> None:
    for module in ABSENT:
        assert importlib.util.find_spec(module) is None, f"{module} can be imported"
        try:
            version = importlib.metadata.version(DISTRIBUTIONS.get(module, module))
        except importlib.metadata.PackageNotFoundError:
            continue
        raise AssertionError(f"{module} {version} is installed")
    spec = importlib.util.find_spec("mmr1_reward_server")
    assert spec is not None and spec.origin is not None and spec.origin.startswith(sys.prefix), spec


def check_command() -> None:
    version = importlib.metadata.version("mmr1-reward-server")
    for option, expected in (("--version", f"mmr1-reward-server {version}\n"), ("--help", "--port PORT")):
        done = subprocess.run([COMMAND, option], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert expected in done.stdout, done.stdout


@contextmanager
def running() -> Iterator[str]:
    """A server's URL. At the end it must stop by itself, with code 0, and leave no process of its group behind."""
    process = subprocess.Popen([COMMAND, "--port", "0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        listening = next(filter(None, (re.search(r"event=listening .*port=(\d+)", line) for line in process.stdout)))
        yield f"http://127.0.0.1:{listening.group(1)}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.returncode
        assert not group_exists(process.pid), "the server has left a process behind"
        rest = process.stdout.read()
        assert "level=error" not in rest and "traceback" not in rest, rest
    finally:
        if group_exists(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def group_exists(group: int) -> bool:
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    return True


def fetch(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def check_every_task(url: str) -> int:
    """Each task's example: what the task says, or which extra it takes."""
    tasks = fetch(f"{url}/v1/tasks")["tasks"]
    examples = [task["example"] for task in tasks]
    results = fetch(f"{url}/v1/score", {"items": [example["item"] for example in examples]})["results"]
    for example, result in zip(examples, results, strict=True):
        extra = {"r1v_accuracy": "math", "vlmr1_od_ap": "coco"}.get(example["item"]["task"])
        if extra is None:
            assert result == example["result"], result
        else:
            check_names_extra(result, extra)
    return len(tasks)


def check_names_extra(result: dict[str, Any], extra: str) -> None:
    assert (result["outcome"], result["reward"]) == ("verifier_error", None), result
    assert f"pip install 'mmr1-reward-server[{extra}]'" in result["detail"], result


def check_extras(url: str) -> None:
    for extra, calls in TAKES_EXTRA.items():
        keys = ("task", "response", "solution", "params")
        items = [{"id": "1", **dict(zip(keys, call, strict=True))} for call in calls]
        for result in fetch(f"{url}/v1/score", {"items": items})["results"]:
            check_names_extra(result, extra)


def main() -> None:
    check_environment()
    check_command()
    with running() as url:
        num_tasks = check_every_task(url)
        check_extras(url)
    print(f"the server alone: {num_tasks} tasks answer, and name the extra that they lack")


if __name__ == "__main__":
    main()
