"""Redis with users, passwords and TLS: a run works under the rules that docs/security.md gives, and the rest is a line.

The server is a real one with the page's own rules.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError, RedisError

from mmr1 import preflight
from mmr1.cli import main as mmr1
from mmr1.config import load_config, save_config
from mmr1.credentials import holds_password, shown_redis_url
from mmr1.errors import ConfigurationError
from mmr1.preflight import check_redis
from mmr1.records import PolicyVersion
from mmr1.redis_access import RedisAccess
from mmr1.streams import PromptConsumer, RunQueue, read_ledger
from mmr1_learner.connection import connect
from tests.certificates import Authority, authority
from tests.conftest import make_group, make_prompt
from tests.models import small_config
from tests.own_redis import SYSTEM_REDIS
from tests.redis_servers import behind_tls, running_redis

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "swordfish with spaces"
V0 = PolicyVersion(1, 0)
(DEFAULT,) = {line for line in (ROOT / "deploy/compose/users.acl").read_text().splitlines() if " default " in line}
ADMIN = "redis://admin:a@127.0.0.1:{}/0"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis with the page's users, all of one password, and without the user that needs none."""
    folder = tmp_path_factory.mktemp("acl")
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    page = (ROOT / "docs" / "security.md").read_text()
    users = [line.strip() for line in page.splitlines() if line.startswith("    user mmr1-")]
    rules = [*(line.replace("#SHA256", f"#{digest}") for line in users), "user admin on >a ~* &* +@all"]
    (folder / "users.acl").write_text("\n".join([*rules, DEFAULT]) + "\n")
    with running_redis(folder, "--aclfile", str(folder / "users.acl")) as (_, found):
        yield found


@pytest.fixture
def empty(port: int) -> int:
    redis.Redis.from_url(ADMIN.format(port)).flushall()
    return port


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("redis", "IP:127.0.0.1")
    made.sign("run")
    return made


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    path = folder / "redis.password"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return path


def access(folder: Path, user: str, port: int, **options: Any) -> RedisAccess:
    scheme = options.pop("scheme", "redis")
    url = f"{scheme}://{user}@127.0.0.1:{port}/0"
    config = small_config(folder, redis_url=url, **{"redis_password_file": password_file(folder), **options})
    return RedisAccess.from_config(config, {})


def go_round(learner: RedisAccess, rollout: RedisAccess) -> None:
    """Every script and command of both sides, once."""
    queue = RunQueue(connect(learner), "test")
    assert queue.become_writer() == 1
    for position in range(3):
        assert queue.feed(make_prompt(position))
    queue.feed_again([make_prompt(3)])

    async def serve() -> None:
        async with rollout.asyncio_client() as client:
            server = PromptConsumer(client, "test", "a", claim_idle_seconds=0.05, max_deliveries=4)
            await server.prepare()
            await server.register("127.0.0.1:1", "serves", V0, 30)
            published, dropped, dead, held = await server.take(4, V0, 1)
            assert len(await server.heartbeat([published, held])) == 2
            for delivery in (published, dropped):
                assert await server.publish(delivery, make_group(delivery.prompt))
            assert await server.note_error(held, "what the holder saw last")
            assert await server.dead(dead, "prompt_refused", "why")
            assert await server.give_back(held)
            (again,) = await server.take(4, V0, 1)
            assert await server.fail(again, "what went wrong")
            (again,) = await server.take(4, V0, 1)
            successor = PromptConsumer(client, "test", "a", claim_idle_seconds=0.05, max_deliveries=4)
            await successor.register("127.0.0.1:1", "serves", V0, 30)
            await asyncio.sleep(0.1)
            (claimed,) = await successor.take(4, V0, 1)  # its holder is dead
            assert (claimed.entry_id, claimed.num_deliveries) == (again.entry_id, 3)
            await successor.leave()
            await server.register("127.0.0.1:1", "serves", V0, 30)

    asyncio.run(serve())
    assert [member.server_id for member in queue.members()] == ["a"]
    first, second = queue.read(8)
    queue.mark_applied([first.prompt.id])
    assert queue.drop(second.prompt.id, "stale", make_prompt(second.prompt.id.position, attempt=1))
    assert queue.acknowledge([first.prompt.id]) == 1
    queue.commit_version(PolicyVersion(1, 1))
    accounts, pending = queue.snapshot()
    assert accounts.balanced and len(pending) == 2 and accounts.dead == {"prompt_refused": 1}
    assert not queue.restore(accounts)
    assert queue.accounts().ledger.fed == accounts.fed
    successor = RunQueue(connect(learner), "test")
    assert successor.become_writer() == 2
    assert successor.read(4) == []


def test_a_run_works_under_the_rules_of_the_page(empty: int, tmp_path: Path) -> None:
    go_round(access(tmp_path, "mmr1-learner", empty), access(tmp_path, "mmr1-rollout", empty))
    ledger = access(tmp_path, "mmr1-ledger", empty)
    check_redis(ledger)
    assert read_ledger(ledger.client(), "test").balanced


def test_the_stack_of_one_machine_has_one_user(empty: int, tmp_path: Path) -> None:
    one = access(tmp_path, "mmr1-up", empty)
    check_redis(one)
    go_round(one, one)


def test_the_rules_are_what_the_scripts_need() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_redis_acl.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("user", ["mmr1-learner", "mmr1-rollout", "mmr1-up", "mmr1-ledger"])
def test_the_rules_let_nobody_at_anything_else(user: str, empty: int, tmp_path: Path) -> None:
    client = access(tmp_path, user, empty).client()
    forbidden: list[tuple[Any, ...]] = [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("GET", "mmr1:{test}:ledger"),
        ("MONITOR",),
        ("HGETALL", "somebody-elses"),
    ]
    for command in forbidden:
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    script = "return redis.call('HSET', 'somebody-elses', 'a', 1)"
    with pytest.raises(RedisError):
        client.evalsha(redis.Redis.from_url(ADMIN.format(empty)).script_load(script), 0)


def refused(call: Any) -> str:
    """The one line that the user reads: at once, and without the password."""
    begun = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert time.monotonic() - begun < 6
    line = str(caught.value)
    assert "\n" not in line and "swordfish" not in line and "wrong" not in line.replace("WRONGPASS", "")
    return line


@pytest.mark.parametrize("call", [connect, check_redis])
def test_who_is_turned_away_hears_why_at_once(call: Any, empty: int, tmp_path: Path) -> None:
    wrong = access(tmp_path, "mmr1-up", empty, redis_password_file=None)
    line = refused(lambda: call(wrong))
    assert line.startswith(f"redis_url redis://127.0.0.1:{empty}/0: ") and "redis_password_file" in line
    (tmp_path / "wrong").write_text("wrong\n")
    line = refused(lambda: call(access(tmp_path, "mmr1-up", empty, redis_password_file=tmp_path / "wrong")))
    assert "invalid username-password pair" in line and "redis_password_file" in line
    assert "redis_password_file" in refused(lambda: call(f"redis://127.0.0.1:{empty}/0"))
    redis.Redis.from_url(ADMIN.format(empty)).execute_command("ACL", "SETUSER", "mute", "on", ">mute-mute", "-@all")
    line = refused(lambda: call(RedisAccess(f"redis://mute:mute-mute@127.0.0.1:{empty}/0")))
    assert "no permissions" in line and "docs/security.md" in line and "mute-mute" not in line


def test_a_command_that_is_forbidden_within_a_script_is_named(empty: int, tmp_path: Path) -> None:
    admin = redis.Redis.from_url(ADMIN.format(empty))
    admin.execute_command("ACL", "SETUSER", "narrow", "on", ">narrow", "~mmr1:*", "+@all", "-xadd")
    narrow = RedisAccess(f"redis://narrow:narrow@127.0.0.1:{empty}/0")
    queue = RunQueue(connect(narrow), "test")
    queue.become_writer()
    with pytest.raises(RedisError) as caught:
        queue.feed(make_prompt())
    found = narrow.refusal(caught.value)
    assert found is not None and "docs/security.md" in str(found)
    admin.execute_command("ACL", "SETUSER", "narrow", "+xadd", "resetkeys", "~elsewhere:*")
    with pytest.raises(RedisError) as caught:
        queue.feed(make_prompt())
    assert narrow.refusal(caught.value) is not None


def test_what_is_no_matter_of_access_is_left_alone(empty: int) -> None:
    admin = RedisAccess(ADMIN.format(empty))
    with pytest.raises(RedisError) as caught:
        admin.client().execute_command("XADD", "mmr1:x")
    assert admin.refusal(caught.value) is None
    with pytest.raises(RedisError) as caught:
        RedisAccess("redis://127.0.0.1:1/0").client().ping()
    assert RedisAccess("redis://127.0.0.1:1/0").refusal(caught.value) is None


def test_a_run_goes_round_over_tls_with_certificates_of_callers(empty: int, ours: Authority, tmp_path: Path) -> None:
    certificate = (ours.folder / "redis.pem", ours.folder / "redis.key")
    shown = {"redis_tls_cert": ours.folder / "run.pem", "redis_tls_key": ours.folder / "run.key"}
    with behind_tls(empty, certificate, ours.ca) as tls_port:
        one = access(tmp_path, "mmr1-up", tls_port, scheme="rediss", redis_tls_ca=ours.ca, **shown)
        check_redis(one)
        go_round(one, one)
        without = access(tmp_path, "mmr1-up", tls_port, scheme="rediss", redis_tls_ca=ours.ca)
        line = refused(lambda: connect(without))
        assert "certificate" in line and "redis_tls_cert" in line


@pytest.mark.parametrize("call", [partial(connect, answer_seconds=1.0), check_redis])
def test_tls_that_does_not_meet_is_named(
    call: Any, empty: int, ours: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "REMOTE_SECONDS", 1.0)  # a Redis without TLS is silent
    certificate = (ours.folder / "redis.pem", ours.folder / "redis.key")
    with behind_tls(empty, certificate) as tls_port:
        plain = access(tmp_path, "mmr1-up", tls_port)
        assert "it speaks TLS; write rediss://" in refused(lambda: call(plain))
        trusting_nobody = access(tmp_path, "mmr1-up", tls_port, scheme="rediss")
        assert "certificate is not trusted" in refused(lambda: call(trusting_nobody))
    secured = access(tmp_path, "mmr1-up", empty, scheme="rediss", redis_tls_ca=ours.ca)
    assert "it speaks no TLS" in refused(lambda: call(secured))


def test_mmr1_ledger_takes_its_password_from_the_environment(
    empty: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = access(tmp_path, "mmr1-up", empty)
    go_round(one, one)
    monkeypatch.setenv("MMR1_REDIS_URL", f"redis://mmr1-ledger@127.0.0.1:{empty}/0")
    assert mmr1(["ledger", "test"]) == 2
    monkeypatch.setenv("MMR1_REDIS_PASSWORD", PASSWORD)
    assert mmr1(["ledger", "test"]) == 0
    assert "\nbalanced: 5 = " in capsys.readouterr().out
    assert mmr1(["ledger", "test", "--dead", "--json"]) == 0
    assert "prompt_refused" in capsys.readouterr().out
    assert mmr1(["ledger", "nobody"]) == 2
    assert "it holds test" in capsys.readouterr().err
    assert mmr1(["ledger", "nobody", "--redis-url", f"redis://mmr1-learner@127.0.0.1:{empty}/0"]) == 2
    assert "run 'nobody' is not in the Redis at" in (error := capsys.readouterr().err)
    assert "this user may not ask which there are; give the run's name" in error and error.count("\n") == 1
    assert mmr1(["ledger", "test", "--redis-url", f"redis://u:{PASSWORD}@127.0.0.1:{empty}/0"]) == 2
    assert PASSWORD not in capsys.readouterr().err


SECRET_URLS = [
    "redis://:s3cret@host:6379/0",
    "redis://user:s3cret@host:6379/0",
    "redis://user:s3/cret@host:6379/0",
    "redis://user:s3?cret@host/0",
    "redis://user:s3#cret@host/0",
    "redis://user:s3@cret@host/0",
    "redis://host/0?password=s3cret",
    "redis://host/0?password=s3@cret",
    "rediss://user:12/s3cret@host/0",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_password_in_a_url_is_shown_nowhere(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert holds_password(url)
    given = RedisAccess(url)
    shown = [given.shown, repr(given), shown_redis_url(url)]
    required = ["--model", "m", "--train_file", "t.json", "--num_steps", "1", "--per_device_batch_size", "8"]
    monkeypatch.setenv("MMR1_REDIS_URL", url)
    config = load_config(None, required)
    save_config(config, tmp_path / "config.yaml")
    shown.append((tmp_path / "config.yaml").read_text())
    monkeypatch.delenv("MMR1_REDIS_URL")
    with pytest.raises(ConfigurationError) as caught:
        load_config(None, [*required, "--redis_url", url])  # everybody can list arguments
    assert "redis_password_file" in str(caught.value)
    shown.append(str(caught.value))
    try:
        given.client(socket_connect_timeout=0.2).ping()
    except (ConfigurationError, RedisError) as error:
        shown.append(str(error))
    shown += capsys.readouterr()
    assert not [text for text in shown if "s3" in text or "cret" in text]


@pytest.mark.parametrize(
    "url", ["redis://host:6379/0", "rediss://user@host/1", "redis://127.0.0.1:1", "unix:///r.sock"]
)
def test_a_url_without_a_password_is_shown_without_its_user(url: str) -> None:
    assert not holds_password(url)
    assert shown_redis_url(url) == url.replace("user@", "")


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"redis_url": "redis://u:p@h/0"}, {"MMR1_REDIS_PASSWORD": "x"}, "leave one out"),
        ({"redis_url": "redis://u@h/0"}, {"MMR1_REDIS_PASSWORD": ""}, "MMR1_REDIS_PASSWORD is empty"),
        ({"redis_url": "redis://u@h/0", "redis_password_file": "none"}, {}, "redis_password_file none cannot be read"),
        ({"redis_url": "http://h"}, {"MMR1_REDIS_PASSWORD": "x"}, "not the URL of a Redis"),
        ({"redis_url": "rediss://h/0", "redis_tls_ca": "none"}, {}, "redis_tls_ca none cannot be read"),
    ],
)
def test_wrong_credentials_are_named(
    options: dict[str, str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RedisAccess.from_config(small_config(tmp_path, **options), environment)


def test_tls_files_need_a_url_that_asks_for_tls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rediss://"):
        small_config(tmp_path, redis_url="redis://h/0", redis_tls_ca="ca.pem")


@pytest.mark.parametrize("program", [None, *([SYSTEM_REDIS] if SYSTEM_REDIS else [])])
def test_a_redis_with_these_users_remembers_a_run_when_it_is_started_again(tmp_path: Path, program: str | None) -> None:
    """Redis 7 reads its file back as the default user: what that one might not write, it leaves out."""
    page = (ROOT / "docs" / "security.md").read_text()
    assert (
        f"`{DEFAULT}`" in " ".join(page.split()) and DEFAULT in (ROOT / "deploy/kubernetes/make-secrets.sh").read_text()
    )
    (tmp_path / "users.acl").write_text(f"user admin on >a ~* &* +@all\n{DEFAULT}\n")
    options = ("--aclfile", str(tmp_path / "users.acl"), "--appendonly", "yes")
    with running_redis(tmp_path, *options, program=program) as (_, port):
        queue = RunQueue(redis.Redis.from_url(ADMIN.format(port)), "test")
        queue.become_writer()
        assert all(queue.feed(make_prompt(position)) for position in range(3))
    with running_redis(tmp_path, *options, program=program) as (_, port):
        ledger = read_ledger(redis.Redis.from_url(ADMIN.format(port)), "test")
        assert ledger is not None and (ledger.fed, ledger.pending) == (3, 3)
        for stranger in (redis.Redis(port=port), redis.Redis(port=port, username="default", password="")):
            with pytest.raises(redis.exceptions.AuthenticationError):
                stranger.ping()
