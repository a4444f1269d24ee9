"""docs/failures.md prints what the program prints: each case is provoked here and its line looked up in the page."""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.registry import _registry
from PIL import Image

from mmr1 import ledger_cli, rewards_cli, templates_cli
from mmr1.adapter_limits import check_adapter_family
from mmr1.capacity.command import main as plan
from mmr1.config import RunConfig, load_config
from mmr1.config.eval_options import EvalConfig
from mmr1.config.loading import load_options
from mmr1.config.sft_options import SftConfig
from mmr1.convert import command as convert
from mmr1.coordinates import Coordinates
from mmr1.dataset import eval_problems, train_problems
from mmr1.deepspeed_file import read_deepspeed_file
from mmr1.errors import ConfigurationError
from mmr1.families import pixel_bounds
from mmr1.images import ImageStore
from mmr1.local.ports import Port, require_free
from mmr1.local.run_lock import run_lock
from mmr1.preflight import check_data, check_kimikl_task, check_model, check_redis, check_reward_server
from mmr1.preprocessing import compare
from mmr1.report import build, build_evaluation
from mmr1.reward_names import check_names_of_own_server
from mmr1.row_checks import check_own_rows
from mmr1.run_identity import check_same_evaluation, check_same_run
from mmr1.templates import Templates
from mmr1.tracker_names import check_trackers
from mmr1.trained_layers import check_vision_tower, layers_to_adapt
from mmr1_learner.checkpoint import Checkpoints
from mmr1_learner.held_out.command import main as evaluation
from mmr1_learner.replay import main as replay
from mmr1_reward_server.rewards import builtin_tasks

PAGE = Path(__file__).resolve().parents[3] / "docs" / "failures.md"
TINY = PAGE.parents[1] / "examples" / "tiny_vlm"
GOOD: dict[str, Any] = {
    "model": "examples/tiny_vlm",
    "train_file": "data/train.json",
    "num_steps": 60,
    "per_device_batch_size": 256,
}


def config(**options: Any) -> RunConfig:
    """What `mmr1 up counting.yaml` reads, with some options changed; None takes one out."""
    document = {name: value for name, value in (GOOD | options).items() if value is not None}
    Path("counting.yaml").write_text(yaml.safe_dump(document))
    return load_config("counting.yaml")


def dataset(*rows: str, **options: Any) -> None:
    Path("data/train.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
    train_problems(config(**options))


def table(path: str = "data/train.parquet", **columns: Any) -> str:
    row = {"problem": "How many digits are there?", "image": "a.png"} | columns
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), path)
    train_problems(config(train_file=path))
    return path


def pointer() -> None:
    Path("data/train.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    train_problems(config(train_file="data/train.parquet"))


def task_without_weight() -> None:
    dataset(row("a.png"), row("a.png", task="ocr"))
    check_data(config(task_weights={"ocr": 1}))


def judge_of_another_task() -> None:
    dataset(row("a.png"), row("a.png", task="ocr"))
    check_data(config(rewards=["counting=1.0", "format=0.2"]))


def several_splits() -> None:
    for split in ("train", "test"):
        table(f"data/{split}.parquet", solution=3)
    train_problems(config(train_file="data"))


def row(image: str, **keys: Any) -> str:
    return json.dumps({"problem": "How many digits are there?", "solution": 3, "image": image} | keys)


def without(key: str) -> str:
    return json.dumps({name: value for name, value in json.loads(row("a.png")).items() if name != key})


def port_in_use() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        require_free([Port(taken.getsockname()[1], "127.0.0.1", "reward_port", "the reward server")])


def in_use(folder: str, *holder: str) -> None:
    with run_lock(Path(folder), *holder), run_lock(Path(folder)):
        pass


def task_of_kimikl() -> None:
    dataset(row("a.png"))
    chosen = config(kl=["kimikl"], kimikl_task_id="couting")
    check_kimikl_task(chosen, train_problems(chosen))


def unknown_run() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_cli, "check_redis", lambda _: None)
        patch.setattr(ledger_cli, "read_accounts", lambda *_: SimpleNamespace(known=False))
        patch.setattr(ledger_cli, "run_names", lambda _: [])
        ledger_cli.main(["counting"])


def damaged_checkpoint() -> None:
    Path("runs/demo/checkpoints/step-000040").mkdir(parents=True)
    Checkpoints(Path("runs/demo/checkpoints"), 2).newest()


def another_run() -> None:
    dataset(row("a.png"))
    state = Path("runs/demo/checkpoints/step-000040/state.json")
    state.parent.mkdir(parents=True)
    state.write_text('{"identity": {"seed": 0}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmr1.run_identity.check_model", lambda _: None)
        check_same_run(config(seed=1, run_dir="runs/demo"))


def model_of_another_family() -> None:
    Path("models/llama").mkdir(parents=True)
    Path("models/llama/config.json").write_text('{"model_type": "llama"}')
    check_model("models/llama")


def model_without_weights() -> None:
    Path("models/half").mkdir(parents=True)
    Path("models/half/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    check_model("models/half")


def model_that_was_cut() -> None:
    Path("models/cut").mkdir(parents=True)
    Path("models/cut/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    Path("models/cut/model.safetensors").write_bytes(b"\x10" + b"\x00" * 7 + b'{"a": 1}')
    check_model("models/cut")


def deepspeed_file() -> None:
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    read_deepspeed_file(config(zero_stage=2, deepspeed_config_file="ds.json"))


def adapters(*names: str) -> None:
    chosen = config(lora_rank=2, lora_target_modules=list(names))
    layers_to_adapt(["layers.0.q_proj", "layers.0.o_proj"], chosen)


def dump_of_fine_tuning() -> None:
    folder = Path("runs/warm/sft/dumps/step-000003-rank-0")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "dump.json").write_text('{"format": 1, "kind": "fine_tuning"}')
    replay([str(folder)])


def compared_with_fine_tuning() -> None:
    for name in ("runs/demo", "runs/warm/sft"):
        Path(name).mkdir(parents=True)
        (Path(name) / "metrics.jsonl").write_text("")
    build(Path("runs/demo"), Path("runs/warm/sft"))


def report_of_neither() -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("")
    build(Path("runs/mine"))


def evaluation_that_goes_on() -> None:
    for name in ("runs/other", "runs/mine/eval"):
        Path(name).mkdir(parents=True)
        (Path(name) / "evaluation.json").write_text("{}")
    Path("runs/other/results.json").write_text("{}")
    build_evaluation(Path("runs/other"), Path("runs/mine/eval"))


def tracker_missing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmr1.tracker_names.find_spec", lambda _: None)
        check_trackers(["wandb"])


def tracker_without_key() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmr1.tracker_names.find_spec", lambda _: True)
        check_trackers(["wandb"], {"HOME": "."})


def evaluation_without_problems() -> None:
    config()
    evaluation(["counting.yaml"])


def coordinates_of_another_family() -> None:
    Path("models/llava").mkdir(parents=True)
    Path("models/llava/config.json").write_text('{"model_type": "llava"}')
    Coordinates.of(config(model="models/llava"))


def boxes(problem: str, solution: object) -> None:
    changed = {"problem": problem, "solution": solution, "image": "a.png", "task": "grounding"}
    Path("data/train.json").write_text(json.dumps(changed | {"solution": [0, 0, 9, 9], "problem": "Where?"}))
    with Path("data/train.json").open("a") as file:
        file.write("\n" + json.dumps(changed))
    check_data(config(rewards=["task"]))


def judged(changed: str) -> None:
    Path("data/train.json").write_text(f"{row('a.png')}\n{changed}\n")
    chosen = config(rewards=["task"])
    check_own_rows(chosen, check_data(chosen), eval_problems(chosen))


def root_without_its_package() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("s3fs", "aiobotocore", "botocore"):
            patch.setitem(sys.modules, name, None)
        patch.delitem(_registry, "s3", raising=False)  # another test may have opened a bucket
        ImageStore(config(image_root="s3://photos").resolved_image_root)


def cache_in_the_way() -> None:
    fsspec.filesystem("memory").pipe("/photos/a.png", Path("data/a.png").read_bytes())
    Path("cache").write_text("a file")
    dataset(row("a.png"), image_root="memory://photos", image_cache="cache")


def converted(name: str, content: bytes, kind: str = "coco") -> None:
    Path(name).write_bytes(content)
    parser = argparse.ArgumentParser()
    convert.add_parser(parser)
    convert.run(parser.parse_args([kind, name, "--images", "data", "--out", "data/new"]))


def nothing_to_convert() -> None:
    question = {"image_filename": "a.png", "question": "How many cubes are there?"}
    converted("CLEVR_test_questions.json", json.dumps({"questions": [question]}).encode(), "clevr")


SFT = ["--model", "examples/tiny_vlm", "--train_file", "data/train.json", "--per_device_batch_size", "4"]

CASES: dict[str, Callable[[], object]] = {
    "no such file": lambda: load_config("missing.yaml"),
    "misspelt option": lambda: config(num_generation=8),
    "unknown option": lambda: config(zzz=8),
    "misspelt on the command line": lambda: load_config(None, ["--learning_rat", "1e-4"]),
    "required option": lambda: config(per_device_batch_size=None),
    "no length": lambda: config(num_steps=None),
    "two lengths": lambda: config(num_epochs=2),
    "wrong type": lambda: config(learning_rate="fast"),
    "out of bounds": lambda: config(temperature=0),
    "batch does not divide": lambda: config(per_device_batch_size=250),
    "temperature order": lambda: config(temperature_func="linear", temperature_begin=1.2, temperature_end=0.8),
    "overlong buffer": lambda: config(overlong_buffer=100),
    "offloading": lambda: config(zero_stage=2, offload_parameters=True),
    "no adapters": lambda: config(lora_updates="adapter"),
    "adapters in the tower": lambda: config(lora_updates="adapter", lora_rank=8),
    "large adapters": lambda: config(lora_updates="adapter", lora_rank=1024, freeze_vision_tower=True),
    "adapters of a family": lambda: check_adapter_family(
        config(lora_updates="adapter", lora_rank=8, freeze_vision_tower=True), "gemma3"
    ),
    "DeepSpeed's file": deepspeed_file,
    "no such layer": lambda: adapters("q_porj"),
    "the output matrix": lambda: adapters("lm_head"),
    "no vision tower": lambda: check_vision_tower(["layers.0.q_proj"]),
    "rewards": lambda: config(rewards=["counting=high"]),
    "unknown reward": lambda: check_names_of_own_server(config(rewards=["couting=1.0"])),
    "judge of another task": judge_of_another_task,
    "task of kimikl": task_of_kimikl,
    "unknown template": lambda: Templates.from_config(config(question_template="r1")),
    "tracker missing": tracker_missing,
    "tracker without a key": tracker_without_key,
    "steps of sft": lambda: load_options(SftConfig, None, SFT).for_problems(1, 1),
    "evaluation of nothing": evaluation_without_problems,
    "greedy samples": lambda: load_options(EvalConfig, None, [*SFT, "--eval_samples", "4"]),
    "no address": lambda: load_options(EvalConfig, None, [*SFT, "--rollout_servers", "7390"]),
    "another evaluation": lambda: check_same_evaluation(
        {"model": "files 0c1f"}, {"model": "files 9a2b"}, Path("runs/mine/eval")
    ),
    "plan of a model that is away": lambda: plan(["--model", "nobody/nothing", "--gpus", "2"]),
    "plan of long images": lambda: plan([f"--model={TINY}", "--gpus=2", "--max_prompt_length=64"]),
    "misspelt template": lambda: templates_cli.main(["pr1_orc"]),
    "report of neither": report_of_neither,
    "evaluation that goes on": evaluation_that_goes_on,
    "no dump": lambda: replay(["runs/demo/dumps"]),
    "dump of fine-tuning": dump_of_fine_tuning,
    "dataset missing": lambda: train_problems(config(train_file="data/trian.json")),
    "not JSON": lambda: dataset(row("a.png"), '{"problem": "How many', row("a.png")),
    "misspelt key": lambda: dataset(row("a.png"), without("solution")[:-1] + ', "solutoin": 3}'),
    "missing key": lambda: dataset(row("a.png"), without("problem")),
    "missing column": lambda: table(solutoin=3),
    "pointer": pointer,
    "several splits": several_splits,
    "task without a weight": task_without_weight,
    "missing image": lambda: dataset(row("a.png"), row("images/00042.png")),
    "unreadable image": lambda: dataset(row("broken.png")),
    "image outside the root": lambda: dataset(row("../secret.png")),
    "model missing": lambda: check_model("./models/qwen"),
    "another family": model_of_another_family,
    "no weights": model_without_weights,
    "cut weights": model_that_was_cut,
    "coordinates": coordinates_of_another_family,
    "solution without a box": lambda: boxes("Where?", "the cup"),
    "inverted box": lambda: boxes("Where?", [9, 9, 0, 0]),
    "half a box": lambda: boxes("What is in <box>[1, 2, 3]</box>?", [0, 0, 9, 9]),
    "solution that is no count": lambda: judged(row("a.png", solution="a few")),
    "box outside its image": lambda: judged(row("a.png", task="grounding", solution=[10, 10, 500, 50])),
    "box beyond all images": lambda: boxes(f"What is in <box>[0, 0, {'9' * 400}, 4]</box>?", [0, 0, 9, 9]),
    "root of another kind": lambda: ImageStore(config(image_root="swift://photos").resolved_image_root),
    "root without its package": root_without_its_package,
    "root with a password": lambda: config(image_root="ftp://me:word@host/photos"),
    "cache in the way": cache_in_the_way,
    "pickle": lambda: converted("refs(unc).p", b"\x80\x04."),
    "no COCO": lambda: converted("rows.json", b"[]"),
    "nothing to convert": nothing_to_convert,
    "bounds of pixels": lambda: pixel_bounds(config(max_pixels=50176), "llava"),
    "prepared differently": lambda: compare({"pillow": "13.0.0"}, {"pillow": "12.0.0"}, "rollout-0"),
    "address": lambda: config(host="::1"),
    "port in use": port_in_use,
    "Redis down": lambda: check_redis("redis://127.0.0.1:1/0"),
    "no such run": unknown_run,
    "reward server down": lambda: check_reward_server("http://127.0.0.1:1"),
    "run in use": lambda: in_use("runs/demo"),
    "fine-tuning in use": lambda: in_use("runs/demo/sft", "mmr1 sft"),
    "compared with fine-tuning": compared_with_fine_tuning,
    "task to try": lambda: rewards_cli._named([task.info() for task in builtin_tasks()], "gruonding"),
    "params to try": lambda: rewards_cli._params("[]"),
    "no run": lambda: build(Path("runs/dmeo")),
    "another run": another_run,
    "damaged checkpoint": damaged_checkpoint,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a good dataset of one image, a broken image, and one outside the dataset's root."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Image.new("RGB", (28, 28)).save("data/a.png")
    Image.new("RGB", (28, 28)).save("secret.png")
    Path("data/broken.png").write_bytes(b"not an image")
    yield tmp_path


@pytest.mark.parametrize("case", CASES)
def test_page_prints_what_the_program_prints(case: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        CASES[case]()
    message = str(raised.value)
    assert "\n" not in message
    line = "mmr1: error: " + _stable(message.replace(str(folder.resolve()), "/srv"))
    assert line in {_stable(shown.strip()) for shown in PAGE.read_text().splitlines()}, line


def _stable(line: str) -> str:
    """Without what differs from one machine to another: who holds a port, process ids, and free ports."""
    line = re.sub(r" by pid \d+ \([^)]*\); stop that process or", ";", line)
    line = re.sub(r"pid \d+", "pid 4711", line)
    return re.sub(r"port \d{4,5}", "port 8390", line)
