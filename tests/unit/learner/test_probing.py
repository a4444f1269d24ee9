"""Probes of several servers: all sample at once, one forward compares what they answer, each is judged by its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from mmr1.errors import WeightUpdateError
from mmr1.records import FinishReason, Group, PolicyVersion, Rollout, Sampling, VersionSpan
from mmr1_learner import probing
from mmr1_learner.errors import StopRequestedError
from mmr1_learner.model import Policy, PromptEncoder
from mmr1_learner.parity import ParityError, ParityReport, Scorer
from mmr1_learner.probing import Prober
from mmr1_learner.rows import RowBatch
from mmr1_learner.waiting import settled
from tests.e2e.reference_policy import draw_images, image_prompt
from tests.models import small_config, small_policy

VERSION = PolicyVersion(1, 1)


class Counting:
    """A policy that counts its forwards."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.forwards = policy, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def __call__(self, batch: RowBatch) -> Any:
        self.forwards += 1
        return self._policy(batch)


class Scored:
    """The learner's scorer over a small model, and what servers answer about two images."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.images = draw_images(folder, 2)
        config = small_config(model, image_root=str(folder), max_prompt_length=256)
        self.policy = Counting(small_policy(model, seed=1).eval())
        self.encoder = PromptEncoder(str(model), self.policy._policy, config)
        self.scorer = Scorer(config, self.policy, self.encoder, torch.device("cpu"))  # type: ignore[arg-type]

    def group(self, server: int, image: int = 0, temperature: float = 1.0) -> Group:
        """Each server has sampled other tokens, and not as many, and says other log-probabilities of them."""
        draw = torch.Generator().manual_seed(10 * server + image)
        words = self.encoder.processor.tokenizer("one two three four five six seven eight nine ten").input_ids
        tokens = tuple(words[index] for index in torch.randint(len(words), (3 + server,), generator=draw))
        said = tuple((-5 - torch.rand(len(tokens), generator=draw)).tolist())
        prompt = image_prompt(self.images, image, Sampling(temperature, 16, ignore_eos=True))
        encoded = self.encoder.encode(prompt.text, [self.images.open(one) for one in prompt.images])
        rollout = Rollout(tokens, said, (VersionSpan(VERSION, 0, len(tokens)),), "", FinishReason.LENGTH)
        return Group(prompt, encoded.token_ids, (rollout,), f"server-{server}")


@pytest.fixture
def scored(small_model: Path, tmp_path: Path) -> Scored:
    return Scored(small_model, tmp_path)


def same(found: ParityReport | ParityError, alone: ParityReport) -> bool:
    assert isinstance(found, ParityReport)
    names = ("max_abs_dlogp", "mean_abs_dlogp", "mismatch_kl")
    values = [getattr(found, name) for name in names]
    return found.num_tokens == alone.num_tokens and values == pytest.approx(
        [getattr(alone, name) for name in names], rel=1e-4
    )


@pytest.mark.parametrize("shared", [True, False], ids=["in a shared row", "in padded rows"])
def test_one_forward_compares_every_server_and_tells_them_apart(
    scored: Scored, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        encode = scored.encoder.encode
        monkeypatch.setattr(scored.encoder, "encode", lambda *asked: replace(encode(*asked), position_ids=None))
    answers = [[scored.group(server)] for server in range(3)]
    alone = [scored.scorer.compare(groups) for groups in answers]
    scored.policy.forwards = 0
    together = scored.scorer.compare_each(answers)
    assert scored.policy.forwards == 1
    assert all(map(same, together, alone)), (together, alone)
    assert not same(alone[0], alone[1])


def test_other_prompts_and_other_temperatures_are_scored_apart(scored: Scored) -> None:
    answers = [
        [scored.group(0, image=0), scored.group(0, image=1)],
        [scored.group(1, image=1), scored.group(1, image=0, temperature=0.7)],
    ]
    alone = [scored.scorer.compare(groups) for groups in answers]
    scored.policy.forwards = 0
    assert all(map(same, scored.scorer.compare_each(answers), alone))
    assert scored.policy.forwards == 3


def test_a_forward_has_so_many_groups_at_most(scored: Scored) -> None:
    answers = [[scored.group(server)] for server in range(9)]
    alone = [scored.scorer.compare(groups) for groups in answers]
    scored.policy.forwards = 0
    assert all(map(same, scored.scorer.compare_each(answers), alone))
    assert scored.policy.forwards == 2


def test_long_answers_make_no_forward_longer_than_one_of_them(scored: Scored) -> None:
    """A row of eight would be as long as all together, and its mask the square of that."""
    long = [replace(group, rollouts=(replace_tokens(group.rollouts[0], 200),)) for group in map(scored.group, range(3))]
    alone = [scored.scorer.compare([group]) for group in long]
    scored.policy.forwards = 0
    assert all(map(same, scored.scorer.compare_each([[group] for group in long]), alone))
    assert scored.policy.forwards == 3


def replace_tokens(rollout: Rollout, count: int) -> Rollout:
    tokens, said = (rollout.token_ids * count)[:count], (rollout.logprobs * count)[:count]
    return replace(rollout, token_ids=tokens, logprobs=said, spans=(VersionSpan(VERSION, 0, count),))


def test_other_forbidden_tokens_are_another_question(scored: Scored) -> None:
    plain = scored.group(0)
    sampling = replace(plain.prompt.sampling, forbidden_token_ids=(scored.encoder.image_token_id,))
    other = replace(plain, prompt=replace(plain.prompt, sampling=sampling))
    alone = [scored.scorer.compare([group]) for group in (plain, other)]
    scored.policy.forwards = 0
    assert all(map(same, scored.scorer.compare_each([[plain], [other]]), alone))
    assert scored.policy.forwards == 2


@pytest.mark.parametrize("shared", [True, False], ids=["in a shared row", "in padded rows"])
def test_nothing_sampled_is_no_agreement_and_takes_nobody_with_it(
    scored: Scored, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        encode = scored.encoder.encode
        monkeypatch.setattr(scored.encoder, "encode", lambda *asked: replace(encode(*asked), position_ids=None))
    good = scored.group(0)
    empty = replace(good, rollouts=(replace(good.rollouts[0], token_ids=(), logprobs=(), spans=()),))
    found = scored.scorer.compare_each([[good], [empty], [replace(good, rollouts=())], []])
    assert same(found[0], scored.scorer.compare([good]))
    assert [report.num_tokens for report in found[1:] if isinstance(report, ParityReport)] == [0, 0, 0]


def test_an_answer_to_other_tokens_is_refused_alone(scored: Scored) -> None:
    good, other = scored.group(0), scored.group(1)
    other = replace(other, prompt_token_ids=other.prompt_token_ids[:-1])
    report, refused = scored.scorer.compare_each([[good], [other]])
    assert isinstance(refused, ParityError) and "server-1 saw" in str(refused)
    assert isinstance(report, ParityReport) and same(report, scored.scorer.compare([good]))
    with pytest.raises(ParityError, match="server-1 saw"):
        scored.scorer.compare([other])


class Servers:
    """What each client answers: groups, or how it fails, or until when it does not."""

    def __init__(self, **answers: float | Exception | Event) -> None:
        self._clients = [Client(name, answer) for name, answer in answers.items()]
        self._threads = ThreadPoolExecutor(4)

    def clients(self) -> list[Client]:
        return self._clients

    def begin(self, question: Any) -> Future[Any]:
        return self._threads.submit(question)


class Client:
    def __init__(self, address: str, answer: float | Exception | Event) -> None:
        self.address, self._answer, self.asked = address, answer, 0

    def generate_many(self, prompts: object, **_: object) -> Any:
        self.asked += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        if isinstance(self._answer, Event):
            assert self._answer.wait(30)
            return 3e-6
        return self._answer


class Compared:
    """A scorer of answers that are distances: of none, nothing was sampled; a negative one is refused."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []

    def compare_each(self, answers: list[float]) -> list[ParityReport | ParityError]:
        self.calls.append(answers)
        return [ParityReport(d, d, int(d > 0), 0.0) if d >= 0 else ParityError(f"refused {d}") for d in answers]


def prober(servers: Servers, scorer: Compared, monkeypatch: pytest.MonkeyPatch) -> Prober:
    stand_ins: Any = (small_config(Path("model")), servers, scorer, None, None, [], None)
    made = Prober(*stand_ins)
    monkeypatch.setattr(made, "_probes", lambda *_: [])
    made.begin(VERSION, 0, lambda: None)
    return made


def test_all_are_asked_and_compared_once_and_judged_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, scorer = Servers(a=1e-6, b=1.0, c=2e-6), Compared()
    judge = prober(servers, scorer, monkeypatch)
    a, b, c = servers.clients()
    assert judge.probe(a) == 1e-6  # type: ignore[arg-type]
    with pytest.raises(WeightUpdateError, match=r"^b received version 1\.1"):
        judge.probe(b)  # type: ignore[arg-type]
    assert judge.probe(c) == 2e-6  # type: ignore[arg-type]
    assert [sorted(call) for call in scorer.calls] == [[1e-6, 2e-6, 1.0]]
    assert (a.asked, b.asked, c.asked) == (1, 1, 1)


@pytest.mark.parametrize(
    ("answer", "said"), [(0.0, r"^bad received version 1\.1, and samples nothing"), (-1.0, r"^refused -1\.0")]
)
def test_nothing_sampled_proves_nothing_and_what_is_refused_is_raised_in_its_own_turn(
    answer: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(good=1e-6, bad=answer)
    judge = prober(servers, Compared(), monkeypatch)
    good, bad = servers.clients()
    assert judge.probe(good) == 1e-6  # type: ignore[arg-type]
    with pytest.raises((WeightUpdateError, ParityError), match=said):
        judge.probe(bad)  # type: ignore[arg-type]


def test_one_that_hangs_keeps_nobody_elses_judgement_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Event()
    servers, scorer = Servers(a=1.0, b=answers), Compared()
    judge = prober(servers, scorer, monkeypatch)
    a, b = servers.clients()
    with pytest.raises(WeightUpdateError, match=r"^a received"):
        judge.probe(a)  # type: ignore[arg-type]
    assert not answers.is_set() and scorer.calls == [[1.0]]
    answers.set()
    assert judge.probe(b) == 3e-6 and b.asked == 1  # type: ignore[arg-type]
    assert scorer.calls == [[1.0], [3e-6]]


def test_to_be_told_to_stop_is_heard_while_others_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Event()
    servers = Servers(a=1e-6, b=answers)
    judge = prober(servers, Compared(), monkeypatch)
    heard: list[None] = []

    def tick() -> None:
        heard.append(None)
        if len(heard) == 3:
            raise StopRequestedError

    judge.begin(VERSION, 0, tick)
    try:
        with pytest.raises(StopRequestedError):
            judge.probe(servers.clients()[1])  # type: ignore[arg-type]
        heard.clear()
        with pytest.raises(StopRequestedError):
            settled([Future()], tick, 60.0)
    finally:
        answers.set()


def test_the_gate_asks_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(a=1e-6, b=2e-6)
    judge = prober(servers, Compared(), monkeypatch)
    monkeypatch.setattr(judge, "_compare_preprocessing", lambda _: None)
    monkeypatch.setattr(judge, "_record", lambda *_: None)
    seen: list[Any] = []

    def gate_of(*given: Any) -> tuple[ParityReport, float]:
        seen.append((given[-1], [client.asked for client in servers.clients()]))
        return ParityReport(given[-1], given[-1], 1, 0.0), 1e-3

    monkeypatch.setattr(probing, "gate_of", gate_of)
    a, b = servers.clients()
    assert judge.gate(a) == 1e-6 and list(judge._asked) == [b]  # type: ignore[arg-type, list-item]
    assert judge.gate(b) == 2e-6  # type: ignore[arg-type]
    assert [groups for groups, _ in seen] == [1e-6, 2e-6] and seen[-1][1] == [1, 1]
    assert judge.probe(a) == 1e-6 and a.asked == 2  # type: ignore[arg-type]


def test_what_a_try_that_failed_was_answered_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one has connections of its own."""
    servers, scorer = Servers(a=WeightUpdateError("gone"), b=111.0), Compared()
    judge = prober(servers, scorer, monkeypatch)
    with pytest.raises(WeightUpdateError, match=r"^gone$"):
        judge.probe(servers.clients()[0])  # type: ignore[arg-type]
    again = Servers(b=1e-6)
    servers._clients = again.clients()
    assert judge.probe(again.clients()[0]) == 1e-6  # type: ignore[arg-type]
    assert scorer.calls == [[1e-6]]


@pytest.mark.parametrize("first", [0, 1])
def test_a_server_that_fails_does_so_in_its_own_turn(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever's turn it is, is blamed for what is raised."""
    servers, scorer = Servers(good=1e-6, bad=WeightUpdateError("gone")), Compared()
    judge = prober(servers, scorer, monkeypatch)
    good, bad = servers.clients()
    for client in (good, bad) if first == 0 else (bad, good):
        if client is good:
            assert judge.probe(client) == 1e-6  # type: ignore[arg-type]
        else:
            with pytest.raises(WeightUpdateError, match=r"^gone$"):
                judge.probe(client)  # type: ignore[arg-type]
    assert scorer.calls == [[1e-6]]


def test_what_an_earlier_update_was_answered_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, scorer = Servers(a=1e-6, b=2e-6), Compared()
    judge = prober(servers, scorer, monkeypatch)
    a, b = servers.clients()
    judge.probe(a)  # type: ignore[arg-type]
    judge.begin(PolicyVersion(1, 2), 1, lambda: None)  # nobody came to `b`'s turn
    judge.probe(b)  # type: ignore[arg-type]
    assert b.asked == 2 and len(scorer.calls) == 2


def test_what_was_asked_in_an_earlier_update_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Event()
    servers = Servers(a=1e-6, b=answers)
    judge = prober(servers, Compared(), monkeypatch)
    a, b = servers.clients()
    judge.probe(a)  # type: ignore[arg-type]
    judge.begin(PolicyVersion(1, 2), 1, lambda: None)  # `b` samples yet
    answers.set()
    assert judge.probe(b) == 3e-6 and b.asked == 2  # type: ignore[arg-type]


def test_a_server_is_asked_again_when_it_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it must be seen to have planted adapters, and then that they are others than the learner's."""
    servers, scorer = Servers(a=1e-6, b=2e-6), Compared()
    judge = prober(servers, scorer, monkeypatch)
    for _ in range(2):
        for client in servers.clients():
            judge.adapters(client)  # type: ignore[arg-type]
    assert [client.asked for client in servers.clients()] == [2, 2] and len(scorer.calls) == 2
