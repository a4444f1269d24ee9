"""A learner whose Redis is killed, forgets its last second, fills up, or becomes a replica: it waits and goes on.

SEMANTICS 6: with `everysec` Redis may forget a second of acknowledgements and feeds. What must hold afterwards is what
always holds: every place of the data order trained once, and accounts that balance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from mmr1.errors import StaleWriterError
from mmr1.streams import Patience, RunForgottenError, RunQueue
from mmr1.streams.patience import RedisRestartedError, obstacle
from mmr1_learner.connection import connect
from mmr1_learner.errors import StopRequestedError
from tests.own_redis import SYSTEM_REDIS, OwnRedis
from tests.relay import Relay
from tests.unit.learner.run_of_a_test import PER_STEP, STEPS, Learner, Run, places


class PatientRun(Run):
    """Its learners wait for Redis, and note what they say meanwhile."""

    def __init__(self, server: OwnRedis, folder: Path, **options: Any) -> None:
        super().__init__(server.url, folder, **options)
        self.server = server
        self.said: list[str] = []
        self.stop = False

    def connect(self) -> RunQueue:
        patience = Patience(self._tick, self.said.append, lambda: self.said.append("resumed"), silence_seconds=20.0)
        return RunQueue(connect(self.url, answer_seconds=5.0), "test", patience)

    def _tick(self) -> None:
        if self.stop:
            raise StopRequestedError


SYSTEM = ["system"] if SYSTEM_REDIS else []


@pytest.fixture(params=["everysec", "always", *SYSTEM])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnRedis]:
    of_system = request.param == "system"
    server = OwnRedis(
        tmp_path / "redis", "everysec" if of_system else request.param, SYSTEM_REDIS if of_system else None
    )
    yield server
    server.kill()


@pytest.fixture
def run(server: OwnRedis, tmp_path: Path) -> PatientRun:
    return PatientRun(server, tmp_path)


everysec = pytest.mark.parametrize("server", ["everysec"], indirect=True)
# Each version of Redis has words of its own for what it refuses, and redis-py takes some of them away.
every_version = pytest.mark.parametrize("server", ["everysec", *SYSTEM], indirect=True)


def ends_well(run: PatientRun, learner: Learner) -> None:
    learner.finish()
    assert places(run) == list(range(STEPS * PER_STEP))
    assert learner.queue.ledger().trained == STEPS * PER_STEP


def test_a_redis_that_is_killed_again_and_again_loses_nothing_that_was_acknowledged(run: PatientRun) -> None:
    """SIGKILL between any two parts of a step; by the file of either setting nothing is missing."""
    learner = run.learner()
    run.server.settle()  # in the first second of its life it may know nothing of the run: an empty Redis, tested below
    while learner.step < STEPS:
        run.server.restart()
        learner.source.feed()
        run.server.restart()
        run.serve()
        run.server.restart()
        learner.collect()
        run.server.restart()
        learner.save()
        assert learner.queue.ledger().trained == learner.step * PER_STEP
    ends_well(run, learner)


@everysec
@pytest.mark.parametrize(
    "forgotten", ["feeding", "publishing", "reading", "applying", "acknowledging", "all of a step"]
)
def test_a_redis_that_forgets_its_last_second_is_told_again(run: PatientRun, forgotten: str) -> None:
    learner = run.learner()
    learner.collect()
    learner.save()
    run.server.settle()

    def station(name: str, action: Callable[[], object]) -> None:
        if name == forgotten:
            run.server.remember()
        action()
        if name == forgotten:
            run.server.restart_in_the_past()

    def train_one() -> None:
        """A group that is read by hand is trained by hand."""
        groups = learner.queue.read(1)
        learner.unsaved.extend(group.prompt.id for group in groups)
        station("applying", lambda: learner.queue.mark_applied([group.prompt.id for group in groups]))

    def step() -> None:
        station("feeding", learner.source.feed)
        station("publishing", run.serve)
        station("reading", train_one)
        train_one()  # another one, although Redis may have forgotten that the first was ever read
        station("acknowledging", learner.save)

    station("a step", step)
    for _ in range(STEPS * PER_STEP):  # enough of them; what is lost would never come
        learner.source.feed()
        run.serve()
        train_one()
        learner.save()
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.pending == 0, ledger
    assert places(run) == list(range(STEPS * PER_STEP)), "none lost, none trained twice"
    assert ledger.trained == STEPS * PER_STEP


@everysec
def test_a_forgotten_drop_is_a_drop_again(run: PatientRun) -> None:
    learner = run.learner()
    learner.source.feed()
    run.serve()
    first, second = learner.queue.read(2)
    run.server.remember()
    following = run.prompts.training(first.prompt.id.next_attempt())
    assert learner.queue.drop(first.prompt.id, "stale", following)
    assert learner.queue.drop(second.prompt.id, "no_variance")
    run.server.restart_in_the_past()
    ledger = learner.queue.ledger()
    assert ledger.balanced and ledger.dropped == {"stale": 1, "no_variance": 1}
    assert following.id in learner.queue.pending_ids()


@everysec
def test_a_redis_that_forgets_its_newest_learner_knows_it_again_and_refuses_the_older_one(run: PatientRun) -> None:
    first = run.learner()
    first.collect()
    run.server.remember()
    second = run.learner()
    run.server.restart_in_the_past()
    assert second.queue.ledger().incarnation == 2
    with pytest.raises(StaleWriterError, match="superseded by 2"):
        first.collect()
    ends_well(run, second)


@everysec
def test_a_redis_that_comes_back_empty_ends_the_learner_and_the_next_one_fills_it(run: PatientRun) -> None:
    learner = run.learner()
    learner.collect()
    learner.save()
    run.server.client().flushall()
    run.server.restart()
    with pytest.raises(RunForgottenError):
        learner.collect()
    ends_well(run, run.learner())


def in_the_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@every_version
@pytest.mark.parametrize("what", ["full", "read-only", "away"])
def test_the_run_pauses_with_a_reason_and_goes_on_when_it_clears(run: PatientRun, what: str) -> None:
    learner, client = run.learner(), run.server.client()
    begin: dict[str, Callable[[], object]] = {
        "full": lambda: client.config_set("maxmemory", 1),
        "read-only": lambda: client.execute_command("REPLICAOF", "127.0.0.1", "1"),
        "away": run.server.kill,
    }
    clear: dict[str, Callable[[], object]] = {
        "full": lambda: client.config_set("maxmemory", 0),
        "read-only": lambda: client.execute_command("REPLICAOF", "NO", "ONE"),
        "away": run.server.start,
    }
    words = {
        "full": "Redis is full",
        "read-only": "Redis is read-only",
        "away": "Redis does not answer: Error 111 connecting",
    }
    run.server.settle()
    begin[what]()
    done: list[int] = []
    feeding = in_the_background(lambda: done.append(learner.source.feed().fed))
    until(lambda: run.said)
    time.sleep(1.2)
    assert not done and len(run.said) == 1, "said once, however often it is looked"
    clear[what]()
    feeding.join(15)
    assert done and run.said[1:] == ["resumed"]
    assert run.said[0].startswith(words[what])
    ends_well(run, learner)


@everysec
def test_a_replica_that_is_promoted_goes_on_where_it_stands_and_the_old_master_is_left(
    run: PatientRun, tmp_path: Path
) -> None:
    """A failover as an operator makes one: the name leads to the new master, the old one becomes its replica."""
    replica = OwnRedis(tmp_path / "replica")
    try:
        with Relay(run.server.port) as name:
            run.url = name.url
            learner = run.learner()
            learner.collect()
            learner.save()
            replica.follow(run.server)
            replica.client().execute_command("REPLICAOF", "NO", "ONE")  # of what follows it hears nothing any more
            learner.source.feed()
            run.serve()
            run.server.client().execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
            name.lead_to(replica.port)
            ends_well(run, learner)
            assert replica.client().exists("mmr1:{test}:ledger")
    finally:
        replica.kill()


def info(client: redis.Redis) -> dict[str, Any]:
    found: Any = client.info("persistence")
    return dict(found)


@every_version
def test_a_redis_that_cannot_write_to_its_disk_is_waited_for(run: PatientRun) -> None:
    """MISCONF as Redis itself says it: a snapshot that failed, with stop-writes-on-bgsave-error on."""
    learner, client = run.learner(), run.server.client()
    learner.collect()
    client.config_set("save", "1 1")
    settings: Any = client.config_get("*d*")
    in_the_way = Path(settings["dir"]) / settings["dbfilename"]
    in_the_way.mkdir()  # a snapshot cannot take its place
    client.bgsave()
    until(lambda: info(client)["rdb_last_bgsave_status"] == "err")
    feeding = in_the_background(learner.source.feed)
    until(lambda: run.said)
    assert run.said == ["Redis cannot write to its disk"] and feeding.is_alive()
    in_the_way.rmdir()
    until(lambda: not info(client)["rdb_bgsave_in_progress"])
    client.bgsave()
    feeding.join(15)
    assert not feeding.is_alive() and run.said[1:] == ["resumed"]
    ends_well(run, learner)


@every_version
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_learner_that_starts_meanwhile_waits_too(run: PatientRun, what: str) -> None:
    first, client = run.learner(), run.server.client()
    first.collect()
    first.save()
    if what == "full":
        client.config_set("maxmemory", 1)
    else:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    later: list[Learner] = []
    starting = in_the_background(lambda: later.append(run.learner()))
    until(lambda: run.said)
    assert not later
    client.config_set("maxmemory", 0)
    client.execute_command("REPLICAOF", "NO", "ONE")
    starting.join(15)
    ends_well(run, later[0])


@every_version
def test_a_learner_that_waits_for_redis_can_be_told_to_stop(run: PatientRun) -> None:
    learner = run.learner()
    run.server.client().config_set("maxmemory", 1)
    run.stop = True
    with pytest.raises(StopRequestedError):
        learner.source.feed()


@everysec
def test_a_connection_made_anew_to_another_process_is_noticed_before_a_command_reaches_it(server: OwnRedis) -> None:
    client = connect(server.url)
    client.set("a", 1)
    server.restart()
    with pytest.raises(RedisRestartedError):
        client.incr("a")
    assert client.get("a") == b"1"


def test_what_redis_says_when_it_refuses_is_told_from_other_errors() -> None:
    assert obstacle(redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"))
    assert obstacle(redis.ResponseError("ERR Error running script: @user_script: 8: -READONLY You can't write against"))
    assert obstacle(redis.ResponseError("ERR wrong number of arguments")) is None
