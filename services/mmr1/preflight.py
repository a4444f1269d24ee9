"""Everything that can be known to be wrong before a process starts: a second here saves the half minute of an engine.

Each check raises ConfigurationError with one line that names the thing and the remedy. That options have the right
names, types and relations is `mmr1.config`'s part and done by now. Imports no engine.
"""

from __future__ import annotations

import difflib
import shutil
import ssl
from collections.abc import Collection, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import httpx
from redis.exceptions import RedisError

from mmr1.config import RunConfig
from mmr1.config.sft_options import SftConfig
from mmr1.coordinates import COORDINATE_TASKS, check_coordinates, holds_box, wrong_boxes
from mmr1.dataset import BadRow, eval_problems, stop_at_first, train_problems
from mmr1.deepspeed_file import read_deepspeed_file
from mmr1.errors import ConfigurationError
from mmr1.evaluation.tasks import HEADLINES
from mmr1.local.ports import ports_of, require_free
from mmr1.model_folder import WEIGHT_PATTERNS, check_folder_for, check_model
from mmr1.reading.problems import Problems, tasks_of
from mmr1.records import Problem
from mmr1.redis_access import RedisAccess, access_to
from mmr1.reward_access import reward_tls
from mmr1.reward_names import check_names_of_own_server, check_reward_names
from mmr1.rollout_access import check_rollout_access
from mmr1.row_checks import check_own_rows, check_rows_of_server
from mmr1.templates import Templates
from mmr1.tls import speaks_tls
from mmr1.tracker_names import check_trackers
from mmr1_reward_server.client import RewardServerError

SMALLEST_FREE_BYTES = 512 * 2**20
BYTES_PER_PARAMETER = 12  # a checkpoint holds float32 weights and AdamW's two moments
BYTES_OF_REFERENCE = 4  # and the reference's weights where it moves
REMOTE_SECONDS = 10.0


def check(config: RunConfig) -> None:
    """Run every check of `mmr1 up`, cheapest first. Raises ConfigurationError at the first that fails."""
    check_space(config, check_training(config))
    check_rollout_access(config)
    require_free(ports_of(config))
    if config.redis_url is not None:
        check_redis(RedisAccess.from_config(config))
    problems = check_data(config)
    check_kimikl_task(config, problems)
    held_out = eval_problems(config, check_images=False)
    if config.reward_url is None:
        check_names_of_own_server(config, problems.tasks, held_out.tasks)
        check_own_rows(config, problems, held_out)
    else:
        check_reward_server(config.reward_url, reward_tls(config))
        try:
            check_reward_names(config, problems.tasks, held_out.tasks)
            check_rows_of_server(config, problems, held_out)
        except RewardServerError as error:
            raise ConfigurationError(f"reward_url {config.reward_url}: {error}") from None


def check_training(config: RunConfig) -> Path | None:
    """What a learner needs of its options and its model, whoever starts it. Returns what `check_model` does.

    Raises:
        ConfigurationError: at the first that is wrong.
    """
    check_trackers(config.trackers)
    Templates.from_config(config)
    read_deepspeed_file(config)
    folder = check_model(config.model)
    if folder is not None:
        check_folder_for(config, folder)
    return folder


def check_data(config: RunConfig) -> Problems:
    """Both files, by row and key, images, boxes and task weights. Raises ConfigurationError at the first fault.

    Returns:
        The training problems.
    """
    problems = train_problems(config)
    _check_task_weights(config, problems.tasks)
    if not isinstance(config, SftConfig):
        _check_rewards_fit(config, problems.tasks)
    check_coordinates(config, problems.tasks)
    _check_boxes(config, config.train_file, problems, _tasks_with_boxes(config))
    check_held_out(config)
    return problems


def check_held_out(config: RunConfig) -> Problems:
    """The held-out file alone, by row and key, images and boxes. A run's rewards have no part in it.

    Returns:
        Its problems; none without an `eval_file`.

    Raises:
        ConfigurationError: at the first fault.
    """
    held_out = eval_problems(config)
    if not COORDINATE_TASKS.isdisjoint(held_out.tasks):
        check_coordinates(config, held_out.tasks)
    if config.eval_file is not None:
        _check_boxes(config, config.eval_file, held_out, COORDINATE_TASKS)  # each is scored by its own task
    return held_out


def _tasks_with_boxes(config: RunConfig) -> Collection[str]:
    """The tasks of training problems whose solutions are converted, or scored, as boxes.

    Another reward may take another form.
    """
    if isinstance(config, SftConfig):
        return COORDINATE_TASKS
    return {
        task
        for task in COORDINATE_TASKS
        if any(spec.task in COORDINATE_TASKS for spec in config.reward_specs_for(task))
    }


def _check_boxes(config: RunConfig, path: Path, problems: Problems, tasks: Collection[str]) -> None:
    """In one pass: boxes in texts, and the solutions of `tasks`. Later a bad one would end the run at its place."""
    check_asking = cache(partial(check_coordinates, config, (), asks=True))

    def bad_rows() -> Iterator[BadRow]:
        for index, problem in enumerate(problems):
            if holds_box(problem.problem):
                check_asking()
            keys = (config.problem_key, config.answer_key)
            if reason := wrong_boxes(problem.problem, problem.solution, problem.task, keys, tasks):
                yield problems.bad_row(index, reason)

    stop_at_first(path, bad_rows())


def _check_task_weights(config: RunConfig, tasks: Collection[str]) -> None:
    """Each task of the data has a weight, and each weight a task."""
    weights = config.task_weights
    for name in weights:
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(tasks))}"
            raise ConfigurationError(f"option 'task_weights': no training problem is of task {name!r}; {hint}")
    lacking = sorted(set(tasks) - weights.keys())
    if weights and lacking:
        raise ConfigurationError(
            f"option 'task_weights': task {lacking[0]!r} of the training problems has no weight; give it one (0 leaves "
            "it out)"
        )


def _check_rewards_fit(config: RunConfig, tasks: Collection[str]) -> None:
    """The judge of one of the four tasks reads no other's solutions: it would find fault with every answer to them.

    Rewards of form, presets, plug-ins and rows of a user's own tasks are the user's affair.
    """
    trained = sorted(task for task in tasks if task in HEADLINES and config.task_weights.get(task, 1.0) > 0)
    for name in [spec.task for spec in config.reward_specs if spec.task in HEADLINES]:
        if strange := [task for task in trained if task != name]:
            raise ConfigurationError(
                f"option 'rewards': {name!r} would score rows of task {strange[0]!r} in train_file "
                f"{config.train_file}; write `task` in its place, which is each row's own, or --task {name} if that "
                "is what the rows are"
            )


def check_kimikl_task(config: RunConfig, problems: Sequence[Problem]) -> None:
    """A misspelt task would switch the kimikl term off without a word.

    Raises:
        ConfigurationError: no training problem is of `kimikl_task_id`; the nearest task is named.
    """
    wanted, tasks = config.kimikl_task_id, sorted(tasks_of(problems))
    if wanted is not None and wanted not in tasks:
        near = difflib.get_close_matches(wanted, tasks, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(tasks)}"
        raise ConfigurationError(f"option 'kimikl_task_id': no training problem is of task {wanted!r}; {hint}")


def check_space(config: RunConfig, model_folder: Path | None) -> None:
    """Room for the checkpoints that the run keeps, and one more while it is written."""
    parameters = 0
    if model_folder is not None:
        # At least two bytes a parameter in the file: an upper bound of their number.
        parameters = sum(file.stat().st_size for name in WEIGHT_PATTERNS for file in model_folder.glob(name)) // 2
    bytes_each = BYTES_PER_PARAMETER + (BYTES_OF_REFERENCE if config.ref_sync_steps else 0)
    needed = SMALLEST_FREE_BYTES + (config.keep_last + 1) * parameters * bytes_each
    free = shutil.disk_usage(config.run_dir).free
    if free < needed:
        raise ConfigurationError(
            f"run_dir {config.run_dir} has {free / 2**30:.1f} GiB free and the run needs {needed / 2**30:.1f}; "
            "free some, give another --run_dir, or lower --keep_last"
        )


def check_redis(redis: RedisAccess | str) -> None:
    """An existing Redis lets us in and is new enough for XAUTOCLAIM. A URL alone is one with nothing beside it."""
    access = access_to(redis)
    shown = access.shown
    try:
        with access.client(socket_timeout=REMOTE_SECONDS, socket_connect_timeout=REMOTE_SECONDS) as client:
            version = str(client.info("server")["redis_version"])
    except (RedisError, OSError) as error:
        if isinstance(error, RedisError) and (refusal := access.refusal(error)):
            raise refusal from None
        raise ConfigurationError(
            f"redis_url {shown}: {_first_line(error)}; start it, or leave redis_url out: `mmr1 up` starts its own"
        ) from None
    if tuple(map(int, version.split(".")[:2])) < (6, 2):
        raise ConfigurationError(f"redis_url {shown} is Redis {version}; 6.2 or newer is needed (XAUTOCLAIM)")


def check_reward_server(url: str, verify: ssl.SSLContext | bool = True) -> None:
    """An existing reward server says it is ready. `verify`: whom an https client trusts, as httpx takes it."""
    remedy = "start it, or leave reward_url out and `mmr1 up` starts one"
    try:
        status = httpx.get(f"{url}/readyz", timeout=REMOTE_SECONDS, verify=verify).status_code
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        if "SSL" in str(error):
            remedy = "see reward_tls_ca and reward_client_cert, or write http:// for one without TLS"
        elif isinstance(error, httpx.TransportError) and _speaks_tls(url):
            remedy = "it speaks TLS: write https:// instead of http://"
        raise ConfigurationError(f"reward_url {url}: {_first_line(error)}; {remedy}") from None
    if status != httpx.codes.OK:
        raise ConfigurationError(f"reward_url {url}: /readyz answers {status}; {remedy}")


def _speaks_tls(url: str) -> bool:
    parts = httpx.URL(url)
    return parts.scheme == "http" and speaks_tls(parts.host, parts.port or 80)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = [
    "check",
    "check_data",
    "check_held_out",
    "check_kimikl_task",
    "check_model",
    "check_redis",
    "check_reward_server",
    "check_space",
    "check_training",
]
