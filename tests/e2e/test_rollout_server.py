"""The real server between the real Redis and the real reward server: prompts in, scored groups out, and its ends."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import psutil
import pytest
import redis
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from mmr1.images import ImageStore
from mmr1.records import Group, PolicyVersion, Prompt, PromptId, RewardSpec, Sampling
from mmr1.streams import RunQueue
from tests.conftest import free_port
from tests.e2e.reference_policy import ReferencePolicy, draw_images, image_prompt
from tests.e2e.rollout_process import SERVICE, WEIGHTS, PlayedLearner, RolloutServer

pytestmark = pytest.mark.engine
RUN = "stream"
PIXELS = {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 9}  # a 112 x 112 image is shrunk to 84 x 84


class RewardServer:
    """`python -m mmr1_reward_server`, which a test may stop and start again on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mmr1_reward_server", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@dataclass
class Stack:
    server: RolloutServer
    reward: RewardServer
    queue: RunQueue
    learner: PlayedLearner
    images: ImageStore
    policy: ReferencePolicy
    options: dict[str, Any]
    folder: Path
    next_position: int = 0

    def prompt(self, image: int = 0, **options: Any) -> Prompt:
        sampling = options.pop("sampling", Sampling(1.0, 8, forbidden_token_ids=self.policy.forbidden))
        rewards = (RewardSpec("counting"), RewardSpec("format", 0.5))
        prompt = image_prompt(self.images, image, sampling, run=RUN, rewards=rewards, **options)
        self.next_position += 1
        return replace(prompt, id=PromptId(RUN, self.next_position))

    def feed(self, *prompts: Prompt) -> list[int]:
        for prompt in prompts:
            assert self.queue.feed(prompt)
        return [prompt.id.position for prompt in prompts]

    def groups(self, count: int, seconds: float = 60.0) -> list[Group]:
        """The next `count` groups, dropped from the books once read, so that tests do not see each other's."""
        found: list[Group] = []
        end = time.monotonic() + seconds
        while len(found) < count:
            assert time.monotonic() < end, f"{len(found)} of {count} groups; {self.queue.ledger()}"
            found += self.queue.read(count - len(found))
            time.sleep(0.05)
        self.queue.acknowledge([group.prompt.id for group in found])
        return found

    def until(self, condition: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.server.log.read_text()[-3000:]
            time.sleep(0.05)


def start_server(folder: Path, options: dict[str, Any], server_id: str = "rollout-0") -> RolloutServer:
    server = RolloutServer(folder, server_id, **options)
    server.wait_healthy(WEIGHTS)
    return server


@pytest.fixture(scope="module")
def stack(small_model: Path, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    images = draw_images(folder / "images", 4)
    reward = RewardServer()
    options = {
        "model": str(small_model),
        "train_file": str(folder / "images" / "train.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
        "num_generations": 4,
        "max_prompt_length": 400,
        "max_completion_length": 64,
        "max_concurrent_prompts": 4,
        "claim_idle_seconds": 5.0,
        "reward_deadline_seconds": 2.0,
        "run": RUN,
        "redis_url": redis_server,
        "reward_url": f"http://127.0.0.1:{reward.port}",
        **PIXELS,
    }
    client = redis.Redis.from_url(redis_server)
    client.flushall()
    queue = RunQueue(client, RUN)
    incarnation = queue.become_writer()
    server = start_server(folder, options)
    policy = ReferencePolicy(small_model)
    policy.perturb(seed=5)
    learner = PlayedLearner(server, RUN, incarnation)
    queue.commit_version(learner.update(policy.model, 1))
    yield Stack(server, reward, queue, learner, images, policy, options, folder)
    reward.stop()
    if server.process.poll() is None:
        server.terminate()


def test_a_prompt_comes_back_as_a_scored_group(stack: Stack) -> None:
    positions = stack.feed(*(stack.prompt(image) for image in (0, 1, 2, 3, 0, 1)))
    groups = stack.groups(6)
    assert sorted(group.prompt.id.position for group in groups) == positions
    for group in groups:
        assert len(group.rollouts) == 3 and group.server_id == "rollout-0"
        assert stack.policy.largest_difference(group, stack.images, **PIXELS) < 1e-4
        for rollout in group.rollouts:
            assert rollout.spans == ((PolicyVersion(stack.learner.incarnation, 1), 0, len(rollout.token_ids)),)
            assert rollout.score is not None and rollout.score.components.keys() == {"counting", "format"}
            assert not set(rollout.token_ids) & set(stack.policy.forbidden)
    assert stack.queue.ledger().balanced


def test_the_books_say_why_a_prompt_is_dead(stack: Stack) -> None:
    missing = stack.prompt()
    (stack.images.root / "gone.png").write_bytes((stack.images.root / "0.png").read_bytes())
    missing = replace(missing, images=(stack.images.ref("gone.png"),))
    (stack.images.root / "gone.png").unlink()
    too_long = stack.prompt()
    too_long = replace(too_long, text=too_long.text + "how many " * 400)
    stack.feed(missing, too_long)
    stack.until(lambda: sum(stack.queue.ledger().dead.values()) == 2)
    assert stack.queue.ledger().dead == {"image_unreadable": 1, "prompt_refused": 1}


def test_seeds_repeat_and_differ_within_the_group(stack: Stack) -> None:
    prompt = stack.prompt(sampling=Sampling(1.0, 12, seed=7, ignore_eos=True))
    first, again = (stack.learner.client.generate(prompt, timeout=60) for _ in range(2))
    assert [rollout.token_ids for rollout in first.rollouts] == [rollout.token_ids for rollout in again.rollouts]
    assert len({rollout.token_ids for rollout in first.rollouts}) == 3


def test_a_stop_string_ends_the_completion_and_stays_in_it(stack: Stack) -> None:
    sampling = Sampling(1.0, 64, seed=1, ignore_eos=True, forbidden_token_ids=stack.policy.forbidden)
    whole = stack.learner.client.generate(stack.prompt(sampling=sampling, num_generations=1), timeout=60).rollouts[0]
    stop = whole.text[10:12]
    cut = stack.learner.client.generate(
        stack.prompt(sampling=replace(sampling, stop=(stop,)), num_generations=1), timeout=60
    ).rollouts[0]
    assert cut.finish_reason.value == "stop"
    assert cut.text.endswith(stop) and cut.text.index(stop) == len(cut.text) - len(stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.logprobs) == len(cut.token_ids)


def test_wrong_requests_get_one_sentence(stack: Stack) -> None:
    for broken, code in (
        (replace(stack.prompt(), images=(replace(stack.prompt().images[0], path="../x.png"),)), "INVALID_ARGUMENT"),
        (replace(stack.prompt(), text="how many " * 900), "INVALID_ARGUMENT"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stack.learner.client.generate(broken, timeout=30)
        assert caught.value.code().name == code and "\n" not in caught.value.details()


def test_status_reflection_and_metrics(stack: Stack) -> None:
    status = stack.learner.client.status()
    assert (status.server_id, status.state, status.dtype) == ("rollout-0", "serves", "float32")
    assert status.num_generated_tokens > 0 and "torch" in status.package_versions
    assert SERVICE in ProtoReflectionDescriptorDatabase(stack.server.channel).get_services()
    text = urlopen(f"http://127.0.0.1:{stack.server.metrics_port}/metrics").read().decode()
    assert 'mmr1_rollout_state{state="serves"} 1.0' in text
    assert 'mmr1_rollout_prompts_total{end="published"}' in text
    [member] = stack.queue.members()
    assert (member.server_id, member.address, member.state) == ("rollout-0", stack.server.address, "serves")


def test_a_reward_outage_loses_nothing_and_counts_nothing(stack: Stack) -> None:
    stack.reward.stop()
    positions = stack.feed(*(stack.prompt(image) for image in (0, 1, 2)))
    time.sleep(6.0)
    assert stack.queue.ledger().num_groups == 0
    stack.reward.start()
    groups = stack.groups(3)
    assert sorted(group.prompt.id.position for group in groups) == positions
    assert all(rollout.score and rollout.score.outcome.has_reward for group in groups for rollout in group.rollouts)


def num_prepared(stack: Stack) -> float:
    text = urlopen(f"http://127.0.0.1:{stack.server.metrics_port}/metrics").read().decode()
    (line,) = (line for line in text.splitlines() if line.startswith("mmr1_rollout_prepare_seconds_count "))
    return float(line.split()[1])


def test_what_unproven_weights_have_sampled_is_sampled_again_with_those_that_follow(stack: Stack) -> None:
    """Made ready and sampled under one version, published under another: nothing of the first is in it."""
    learner, before, sampled = stack.learner, num_prepared(stack), stack.learner.client.status().num_generated_tokens
    stack.policy.perturb(seed=6)
    learner.update(stack.policy.model, 2, resume=False)
    sampling = Sampling(1.0, 12, ignore_eos=True, forbidden_token_ids=stack.policy.forbidden)
    positions = stack.feed(*(stack.prompt(image, sampling=sampling) for image in (0, 1, 2)))
    probe = learner.client.generate(stack.prompt(3), timeout=60, probe=True)
    sampled += sum(len(rollout.token_ids) for rollout in probe.rollouts) + 3 * 12 * len(probe.rollouts)
    stack.until(lambda: learner.client.status().num_generated_tokens >= sampled)
    time.sleep(0.5)  # longer than scoring takes
    assert stack.queue.read(3) == [] and num_prepared(stack) == before + 3
    stack.policy.perturb(seed=7)
    version = learner.update(stack.policy.model, 3)
    stack.queue.commit_version(version)
    groups = stack.groups(3)
    assert sorted(group.prompt.id.position for group in groups) == positions
    for group in groups:
        assert {span.version for rollout in group.rollouts for span in rollout.spans} == {version}
        assert stack.policy.largest_difference(group, stack.images, **PIXELS) < 1e-4
    assert learner.client.status().num_generated_tokens == sampled + 3 * 12 * len(probe.rollouts)


def test_what_is_sampled_ahead_of_the_proof_is_published_after_it(stack: Stack) -> None:
    """Once, with the version that was proved: each prompt is made ready and sampled no second time."""
    learner, client = stack.learner, stack.learner.client
    stack.policy.perturb(seed=9)
    version = learner.update(stack.policy.model, 4, resume=False)
    before, prepared = client.status().num_generated_tokens, num_prepared(stack)
    sampling = Sampling(1.0, 12, ignore_eos=True, forbidden_token_ids=stack.policy.forbidden)
    stack.feed(*(stack.prompt(image, sampling=sampling) for image in (0, 1, 2)))
    probe = client.generate(stack.prompt(3), timeout=60, probe=True)
    sampled = before + sum(len(rollout.token_ids) for rollout in probe.rollouts)
    sampled += 3 * 12 * len(probe.rollouts)
    stack.until(lambda: client.status().num_generated_tokens >= sampled)
    time.sleep(0.5)  # longer than scoring takes
    assert stack.queue.read(3) == []
    stack.queue.commit_version(version)
    client.resume(version)
    for group in stack.groups(3):
        assert {span.version for rollout in group.rollouts for span in rollout.spans} == {version}
        assert stack.policy.largest_difference(group, stack.images, **PIXELS) < 1e-4
    assert client.status().num_generated_tokens == sampled and num_prepared(stack) == prepared + 3


def test_an_update_in_the_middle_of_traffic(stack: Stack) -> None:
    long = Sampling(1.0, 48, ignore_eos=True, forbidden_token_ids=stack.policy.forbidden)
    stack.feed(*(stack.prompt(i % 4, sampling=long) for i in range(16)))
    time.sleep(0.3)
    before = copy.deepcopy(stack.policy)
    stack.policy.perturb(seed=8)
    version = stack.learner.update(stack.policy.model, 5)
    stack.queue.commit_version(version)
    numbers = set()
    for group in stack.groups(16):
        [number] = {span.version.number for rollout in group.rollouts for span in rollout.spans}
        numbers.add(number)
        policy = {4: before, 5: stack.policy}[number]
        assert policy.largest_difference(group, stack.images, **PIXELS) < 1e-4
    assert 5 in numbers


def test_sigterm_finishes_or_gives_back_what_it_holds(stack: Stack) -> None:
    long = Sampling(1.0, 60, ignore_eos=True, forbidden_token_ids=stack.policy.forbidden)
    stack.feed(*(stack.prompt(i % 4, sampling=long) for i in range(12)))
    stack.until(lambda: stack.learner.client.status().num_running_prompts)
    assert stack.server.terminate() == 0
    assert stack.queue.members() == []
    ledger = stack.queue.ledger()
    assert ledger.balanced and ledger.num_groups > 0
    with pytest.raises(grpc.RpcError):
        stack.learner.client.status(timeout=2.0)


@pytest.mark.chaos
def test_a_server_whose_engine_dies_ends_and_leaves_nothing(stack: Stack) -> None:
    """Last: it starts the file's second engine, which finishes what the first has left, and kills it."""
    server = start_server(stack.folder, stack.options, "rollout-1")
    learner = PlayedLearner(server, RUN, stack.queue.become_writer())
    stack.queue.commit_version(learner.update(stack.policy.model, 1))
    stack.groups(stack.queue.ledger().pending)
    children = server.children()
    [core] = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    core.kill()
    assert server.process.wait(60) == 1
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("model", "/nowhere/model", "/nowhere/model"),
        ("reward_url", "ftp://x", "ftp://x"),
        ("image_root", "/nowhere", "/nowhere"),
    ],
)
def test_wrong_options_end_at_once_with_one_line(
    tmp_path: Path, small_model: Path, option: str, value: str, named: str
) -> None:
    options = {
        "model": str(small_model),
        "train_file": str(tmp_path / "t.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
    }
    begun = time.monotonic()
    server = RolloutServer(tmp_path, **{**options, option: value})
    assert server.process.wait(60) == 2
    assert time.monotonic() - begun < 15
    [line] = server.log.read_text().splitlines()
    assert line.startswith("mmr1: error: ") and named in line


def test_a_port_in_use_is_named(tmp_path: Path, small_model: Path) -> None:
    options = {
        "model": str(small_model),
        "train_file": str(tmp_path / "t.json"),
        "num_steps": 1,
        "per_device_batch_size": 8,
    }
    (tmp_path / "c.json").write_text(json.dumps(options))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "mmr1_rollout_server",
            "--config",
            str(tmp_path / "c.json"),
            "--server-id",
            "r",
        ]
        done = subprocess.run(
            [*command, "--port", str(port), "--metrics-port", str(free_port())],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2 and str(port) in done.stderr and "rollout_port" in done.stderr
