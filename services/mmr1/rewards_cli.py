"""`mmr1 rewards`: the tasks of the reward server; `mmr1 rewards try`: one response scored, explained and drawn.

The score is the reward server's own, of the program installed here or of a server that runs. This file reads a command
line; what is printed is worded in mmr1.rewards_words, what is drawn in mmr1.report.score_picture.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from mmr1.credentials import REWARD_KEY_VARIABLE
from mmr1.errors import ConfigurationError
from mmr1.images import ImageError, ImageStore
from mmr1.lifecycle import CommandParser
from mmr1.reward_access import KEY_REMEDY
from mmr1.reward_program import Explanation, explain, own_tasks
from mmr1.rewards_words import Tried, words
from mmr1_reward_server.api import Item, Result, TaskInfo, first_problem
from mmr1_reward_server.client import KeyRefused, RewardClient, RewardServerError

_ANSWER_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    """Run `mmr1 rewards ...` and return the exit code.

    Raises:
        ConfigurationError: something that was given is wrong; one line that names it.
    """
    arguments = _parser().parse_args(argv)
    tasks = asyncio.run(_tasks_of(arguments.url)) if arguments.url else own_tasks()
    if arguments.command is None:
        width = max(len(task.name) for task in tasks)
        print("\n".join(f"{task.name:<{width}}  {_first_sentence(task.summary)}" for task in tasks))
        return 0
    task = _named(tasks, arguments.task)
    image = _opened(arguments.image) if arguments.image else None
    item = _item(task, arguments, image)
    explained = _explained(item, arguments.url)
    if explained.refused:
        raise ConfigurationError(f"mmr1 rewards try: {explained.result.detail}")
    tried = Tried(task, item, explained)
    picture = _drawn(tried, image, arguments.out)
    print(words(tried) if picture is None else f"{words(tried)}\n\n{picture}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="mmr1 rewards", description="List the reward server's tasks, or try one of them.")
    url: dict[str, Any] = {
        "metavar": "URL",
        "help": f"ask a server that runs, with the key of {REWARD_KEY_VARIABLE} if there is one",
    }
    parser.add_argument("--url", **url)
    commands = parser.add_subparsers(dest="command", metavar="try")
    attempt = commands.add_parser(
        "try",
        help="score one response, explain the score, draw its boxes",
        description="Score one response. Without --response and --solution it is the task's own example.",
    )
    attempt.add_argument("--task", required=True, metavar="NAME", help="a task that `mmr1 rewards` lists")
    attempt.add_argument("--response", metavar="TEXT", help="what a model wrote")
    attempt.add_argument("--solution", metavar="JSON", help="the truth, as a dataset has it; a text needs no quotes")
    attempt.add_argument("--params", metavar="JSON", help="an object; docs/rewards.md lists each task's")
    attempt.add_argument("--image", type=Path, metavar="FILE", help="what was asked about; it gives the image's size")
    attempt.add_argument("--image-size", type=_size, metavar="WxH", help="the same in pixels, without an image")
    attempt.add_argument("--out", type=Path, metavar="FILE.png", help="default: mmr1-try-TASK.png, if it has boxes")
    attempt.add_argument("--url", default=argparse.SUPPRESS, **url)
    return parser


def _first_sentence(text: str) -> str:
    return textwrap.shorten(text.partition(". ")[0].rstrip(".") + ".", 110, placeholder=" ...")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 640x480")
    return int(found[1]), int(found[2])


def _named(tasks: Sequence[TaskInfo], name: str) -> TaskInfo:
    found = {task.name: task for task in tasks}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
    raise ConfigurationError(f"mmr1 rewards try: the reward server has no task {name!r}; {hint}")


def _opened(path: Path) -> Image.Image:
    store = ImageStore(path.parent)
    try:
        return store.open(store.ref(path.name))
    except ImageError as error:
        raise ConfigurationError(f"mmr1 rewards try: {error}; give --image a picture") from None


def _item(task: TaskInfo, arguments: argparse.Namespace, image: Image.Image | None) -> Item:
    """What was given as an item; the task's example where neither a response nor a solution was."""
    given: dict[str, Any] = {}
    if arguments.params is not None:
        given["params"] = _params(arguments.params)
    if image is not None or arguments.image_size is not None:
        given["image_size"] = image.size if image is not None else arguments.image_size
    if arguments.response is None and arguments.solution is None:
        if task.example is None:
            raise ConfigurationError(
                f"mmr1 rewards try: task {task.name} has no example; give --response and --solution"
            )
        return task.example.item.model_copy(update=given)
    if arguments.response is None or arguments.solution is None:
        missing = "response" if arguments.response is None else "solution"
        raise ConfigurationError(f"mmr1 rewards try: --{missing} is missing; give both, or neither for the example")
    given["solution"] = _solution(arguments.solution, task.solution_schema)
    try:
        return Item(id="1", task=task.name, response=arguments.response, **given)
    except ValidationError as error:
        raise ConfigurationError(f"mmr1 rewards try: {first_problem(error)}; change that") from None


def _params(text: str) -> dict[str, Any]:
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"mmr1 rewards try: --params is not JSON ({error}); give an object") from None
    if not isinstance(params, dict):
        raise ConfigurationError('mmr1 rewards try: --params is no object; give for example {"score": "giou"}')
    return params


def _solution(text: str, schema: dict[str, Any]) -> Any:
    """JSON where it is that and the task takes more than text: the digits of a page are no number."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _explained(item: Item, url: str | None) -> Explanation:
    own = explain(item)
    if url is None:
        return own
    result = asyncio.run(_result_of(url, item))
    same = (result.outcome, result.parsed, result.detail) == (own.result.outcome, own.result.parsed, own.result.detail)
    # Which boxes were matched only the program here tells; of what another server reads differently it knows nothing.
    return Explanation(result=result, refused=same and own.refused, pairs=own.pairs if same else None)


async def _tasks_of(url: str) -> list[TaskInfo]:
    try:
        async with RewardClient(url, _ANSWER_SECONDS, api_key=os.environ.get(REWARD_KEY_VARIABLE)) as client:
            return await client.tasks()
    except (RewardServerError, ValueError) as error:
        raise _unreachable(url, error) from None


async def _result_of(url: str, item: Item) -> Result:
    try:
        async with RewardClient(url, _ANSWER_SECONDS, api_key=os.environ.get(REWARD_KEY_VARIABLE)) as client:
            return (await client.score_or_raise([item]))[0]
    except (RewardServerError, ValueError) as error:
        raise _unreachable(url, error) from None


def _unreachable(url: str, error: Exception) -> ConfigurationError:
    remedy = KEY_REMEDY if isinstance(error, KeyRefused) else "give the address of a reward server that runs"
    return ConfigurationError(f"mmr1 rewards: --url {url}: {error}; {remedy}")


def _drawn(tried: Tried, image: Image.Image | None, out: Path | None) -> Path | None:
    """Write the picture, if there is anything to see on it, and say where."""
    if not (tried.truth or tried.found or image):
        if out is not None:
            raise ConfigurationError(
                f"mmr1 rewards try: task {tried.task.name} draws nothing; leave out --out, or give --image"
            )
        return None
    from mmr1.report.score_picture import draw

    path = out or Path(f"mmr1-try-{tried.task.name}.png")
    try:
        path.write_bytes(draw(tried, image))
    except OSError as error:
        raise ConfigurationError(
            f"mmr1 rewards try: cannot write {path}: {error.strerror}; choose another --out"
        ) from None
    return path
