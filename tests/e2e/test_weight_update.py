"""Weight updates of the real server: after each, its log-probabilities are the learner's; after a failure it serves
nothing until a full update has completed. One engine for the whole file; each test leaves it able to be updated."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from mmr1.images import ImageStore
from mmr1.records import PolicyVersion, Sampling
from tests.e2e.reference_policy import ReferencePolicy, draw_images, image_prompt
from tests.e2e.rollout_process import SERVICE, WEIGHTS, PlayedLearner, RolloutServer, Sender, manifest

pytestmark = pytest.mark.engine
RUN = "weights"
BOUND = 1e-4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return draw_images(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture(scope="module")
def server(
    small_model: Path, images: ImageStore, redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutServer]:
    server = RolloutServer(
        tmp_path_factory.mktemp("server"),
        model=str(small_model),
        train_file=str(images.root / "train.json"),
        num_steps=1,
        per_device_batch_size=8,
        num_generations=4,
        max_prompt_length=512,
        max_completion_length=32,
        run=RUN,
        redis_url=redis_server,
        max_num_seqs=32,
    )
    server.wait_healthy(WEIGHTS)
    yield server
    server.terminate()


@pytest.fixture(scope="module")
def policy(small_model: Path) -> ReferencePolicy:
    return ReferencePolicy(small_model)


_incarnations = iter(range(1, 1000))


@pytest.fixture
def learner(server: RolloutServer) -> Iterator[PlayedLearner]:
    """A new learner: its incarnation is above all before it."""
    learner = PlayedLearner(server, RUN, next(_incarnations))
    yield learner
    learner.client.close()


def worst_difference(
    learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore, *, probe: bool = False
) -> float:
    """Three images, each asked twice so that every cache would answer the second time, at two temperatures."""
    worst = 0.0
    for temperature in (1.0, 0.7):
        sampling = Sampling(temperature, 12, forbidden_token_ids=policy.forbidden, ignore_eos=True)
        for image in (0, 1, 2, 0, 1, 2):
            group = learner.client.generate(image_prompt(images, image, sampling, run=RUN), timeout=60, probe=probe)
            assert not set(policy.forbidden) & {token for rollout in group.rollouts for token in rollout.token_ids}
            worst = max(worst, policy.largest_difference(group, images))
    return worst


def refusal(call: object, *arguments: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code(), caught.value.details()


def test_before_the_first_update_it_serves_nothing(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    assert server.health("") == "SERVING"
    assert server.health(SERVICE) == "NOT_SERVING"
    assert learner.client.status().state == "accepts_weights"
    prompt = image_prompt(images, 0, Sampling(1.0, 4), run=RUN)
    for probe in (False, True):  # base weights are not a version that a probe could prove
        with pytest.raises(grpc.RpcError) as caught:
            learner.client.generate(prompt, timeout=30, probe=probe)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    version = PolicyVersion(learner.incarnation, 1)
    assert refusal(learner.client.start_weight_update, version, 5.0)[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_logprobs_equal_after_1_2_and_10_updates(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    differences = {}
    for number in range(1, 11):
        policy.perturb(seed=number)
        version = learner.update(policy.model, number)
        if number in (1, 2, 10):
            differences[number] = worst_difference(learner, policy, images)
    assert server.health(SERVICE) == "SERVING"
    assert learner.client.status().version == version
    assert max(differences.values()) < BOUND, differences


def test_a_probe_is_answered_under_the_new_version_before_resume(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    learner.update(policy.model, 1)
    policy.perturb(seed=100)
    version = learner.update(policy.model, 2, resume=False)
    sampling = Sampling(1.0, 8, forbidden_token_ids=policy.forbidden)
    prompt = image_prompt(images, 1, sampling, run=RUN)
    assert refusal(lambda: learner.client.generate(prompt, timeout=30))[0] is grpc.StatusCode.UNAVAILABLE
    group = learner.client.generate(prompt, timeout=30, probe=True)
    assert {span.version for rollout in group.rollouts for span in rollout.spans} == {version}
    assert worst_difference(learner, policy, images, probe=True) < BOUND
    code, why = refusal(learner.client.resume, PolicyVersion(learner.incarnation, 1))
    assert code is grpc.StatusCode.FAILED_PRECONDITION and str(version) in why
    learner.client.resume(version)
    assert learner.client.status().state == "serves"
    policy.perturb(seed=101)
    version = learner.update(policy.model, 3, resume=False)
    group = learner.client.generate(prompt, timeout=30, probe=True)  # the same, whose pixels are kept
    assert {span.version for rollout in group.rollouts for span in rollout.spans} == {version}
    assert policy.largest_difference(group, images) < BOUND
    learner.client.resume(version)


def test_greedy_is_the_most_likely_token(learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore) -> None:
    learner.update(policy.model, 1)
    sampling = Sampling(0.0, 8, forbidden_token_ids=policy.forbidden, ignore_eos=True)
    group = learner.client.generate(image_prompt(images, 2, sampling, run=RUN), timeout=60)
    assert len({rollout.token_ids for rollout in group.rollouts}) == 1
    assert policy.largest_difference(group, images) < BOUND


def test_an_older_learner_is_refused(server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy) -> None:
    version = learner.update(policy.model, 1)
    old = PlayedLearner(server, RUN, learner.incarnation - 1)
    for call in (
        lambda: old.init(manifest(policy.model)[1]),
        lambda: old.client.start_weight_update(PolicyVersion(old.incarnation, 99), 5.0),
        lambda: old.client.pause(5.0),
        lambda: old.client.resume(version),
    ):
        code, why = refusal(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"superseded by {learner.incarnation}" in why
    other = PlayedLearner(server, "another-run", learner.incarnation + 1)
    code, why = refusal(other.client.pause, 5.0)
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "another-run" in why
    assert learner.client.status().state == "serves"


def test_verbs_out_of_order_are_refused_and_change_nothing(
    learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    version = learner.update(policy.model, 1)
    following = PolicyVersion(learner.incarnation, 2)
    for call, arguments in (
        (learner.client.update_weights, (following, 5.0)),
        (learner.client.finish_weight_update, (following, 5.0)),
        (learner.client.resume, (version,)),
        (learner.client.start_weight_update, (PolicyVersion(learner.incarnation, 0), 5.0)),  # behind what it holds
    ):
        assert refusal(call, *arguments)[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert learner.client.status().state == "serves"
    learner.client.pause(10.0)
    assert learner.client.status().state == "paused"
    learner.client.resume(version)
    assert worst_difference(learner, policy, images) < BOUND


def test_a_new_learner_takes_over_a_serving_server(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    learner.update(policy.model, 57)
    successor = PlayedLearner(server, RUN, next(_incarnations))
    successor.init(manifest(policy.model)[1])
    assert successor.client.status().state == "accepts_weights"
    assert server.health(SERVICE) == "NOT_SERVING"
    policy.perturb(seed=200)
    successor.update(policy.model, 1)
    assert worst_difference(successor, policy, images) < BOUND


@pytest.mark.parametrize(
    "missing", ["self_attn.k_proj.weight", "visual.blocks.0.mlp.gate_proj.bias", "embed_tokens.weight"]
)
def test_a_parameter_that_was_not_written_breaks_the_server(
    learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore, missing: str
) -> None:
    """A third of a fused tensor is enough: vLLM itself loads the rest without a word."""
    weights, specs = manifest(policy.model)
    left_out = next(spec for spec in specs if missing in spec.name)
    partial = [spec for spec in specs if spec is not left_out]
    learner.init(partial)
    learner.broadcast(weights, partial, 1)
    code, why = refusal(learner.client.finish_weight_update, PolicyVersion(learner.incarnation, 1), 30.0)
    assert code is grpc.StatusCode.ABORTED and "not written" in why
    assert learner.client.status().state == "broken"
    recovers(learner, policy, images, number=2)


def test_a_learner_that_dies_in_its_broadcast(
    server: RolloutServer, small_model: Path, policy: ReferencePolicy, images: ImageStore, learner: PlayedLearner
) -> None:
    learner.update(policy.model, 1)
    dying = next(_incarnations)
    subprocess.run(
        [sys.executable, "-m", "tests.e2e.rollout_process", server.address, RUN, str(dying), "1", str(small_model)],
        timeout=120,
        check=False,
    )
    begun = time.monotonic()
    while learner.client.status().state != "broken":
        assert time.monotonic() - begun < 60.0
        time.sleep(0.1)
    prompt = image_prompt(images, 0, Sampling(1.0, 4), run=RUN)
    for probe in (False, True):
        code, why = refusal(lambda probe=probe: learner.client.generate(prompt, timeout=30, probe=probe))
        assert code is grpc.StatusCode.UNAVAILABLE and "broken" in why
    assert server.health(SERVICE) == "NOT_SERVING"
    assert server.health(WEIGHTS) == "SERVING"
    recovers(PlayedLearner(server, RUN, next(_incarnations)), policy, images, number=1)


def test_a_learner_that_freezes_in_its_broadcast(
    learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    """No connection breaks: only the deadline ends the wait."""
    learner.init(manifest(policy.model)[1])
    version = PolicyVersion(learner.incarnation, 1)
    learner.client.start_weight_update(version, 10.0)
    begun = time.monotonic()
    code, _ = refusal(learner.client.update_weights, version, 3.0)
    assert code is grpc.StatusCode.ABORTED
    assert time.monotonic() - begun < 30.0  # of the sender, 60
    assert learner.client.status().state == "broken"
    recovers(learner, policy, images, number=2)


def test_a_learner_that_vanishes_between_two_verbs(
    learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    learner.init(manifest(policy.model)[1])
    learner.client.start_weight_update(PolicyVersion(learner.incarnation, 1), 2.0)
    time.sleep(3.0)
    status = learner.client.status()
    assert status.state == "broken" and "nothing followed StartWeightUpdate" in status.detail
    recovers(learner, policy, images, number=2)


def test_a_group_that_never_forms_leaves_the_weights_alone(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore
) -> None:
    learner.update(policy.model, 1)
    alone = Sender(prefix="nobody-joins")
    code, why = refusal(learner.client.init_weight_transfer, alone.group_for(manifest(policy.model)[1]), 1, 2.0)
    assert code is grpc.StatusCode.ABORTED, why
    assert learner.client.status().state == "serves"
    assert worst_difference(learner, policy, images) < BOUND


def test_an_engine_stuck_past_its_deadline_ends_the_process(
    server: RolloutServer, learner: PlayedLearner, policy: ReferencePolicy
) -> None:
    """Last: it ends the file's server. A stopped process stands for one that hangs in a collective."""
    learner.init(manifest(policy.model)[1])
    version = PolicyVersion(learner.incarnation, 1)
    learner.client.start_weight_update(version, 10.0)
    children = server.children()
    [worker] = [child for child in children if "VLLM::Worker" in " ".join(child.cmdline())]
    worker.suspend()
    assert refusal(learner.client.update_weights, version, 1.0)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.process.wait(30) == 70
    assert "engine_stuck" in server.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def recovers(learner: PlayedLearner, policy: ReferencePolicy, images: ImageStore, number: int) -> None:
    """A full update leads out of BROKEN; a group that failed is not used again."""
    version = PolicyVersion(learner.incarnation, number)
    assert refusal(learner.client.start_weight_update, version, 5.0)[0] is grpc.StatusCode.FAILED_PRECONDITION
    policy.perturb(seed=1000 + learner.incarnation)
    learner.init(manifest(policy.model)[1])
    learner.update(policy.model, number)
    assert worst_difference(learner, policy, images) < BOUND
