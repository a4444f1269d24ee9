"""Rewards from outside: functions and tasks of other packages, found by entry point or named as `module:attribute`.

    @reward(floor=-1.0, formula="1 - |predicted - true| / 180")
    def angle(response: str, solution: float, *, tolerance: float = 0.0) -> float: ...

It runs no plugin, it only imports them; `build_registry` is what a server and its workers both call.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
import typing
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, create_model

from .api import Example
from .registry import Params, Registry, Sample, Task, Verdict
from .rewards import builtin_tasks

ENTRY_POINT_GROUP = "mmr1.rewards"

F = TypeVar("F", bound=Callable[..., Any])

_DECLARED = "__mmr1_reward__"
_REWARD_KEYS = ("reward", "score")


class PluginError(Exception):
    """A plugin that cannot be used. One line that names it."""


@dataclass(frozen=True, slots=True)
class _Declared:
    name: str | None = None
    floor: float = 0.0
    formula: str = ""
    summary: str = ""
    example: Example | None = None


def reward(
    *,
    name: str | None = None,
    floor: float = 0.0,
    formula: str = "",
    summary: str = "",
    example: Example | None = None,
) -> Callable[[F], F]:
    """Declares what a plain function cannot say by itself; the function stays as it is.

    `name`: the task's, instead of the entry point's or the function's own. `floor`: the reward of `invalid_output`,
    never above that of the worst valid answer. `formula` and `summary` are what GET /v1/tasks shows (by default the
    first line of the docstring); `example` an item and exactly the result that the server answers to it.
    Raises ValueError for a floor that is no finite number.
    """
    if not math.isfinite(floor):
        raise ValueError(f"the floor of a reward is a finite number, not {floor}")

    def declare(function: F) -> F:
        setattr(function, _DECLARED, _Declared(name, floor, formula, summary, example))
        return function

    return declare


def build_registry(named: Sequence[str] = ()) -> Registry:
    """The tasks that come with the server, those of installed packages, and `named` ones. Raises PluginError."""
    tasks: list[tuple[str, Task[Any, Any]]] = [("this server", task) for task in builtin_tasks()]
    for entry in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name):
        package = entry.dist.name if entry.dist else "?"
        source = f"reward {entry.name} = {entry.value} of package {package}"
        tasks.append((source, to_task(_imported(entry.value, source), source, entry.name)))
    for target in named:
        source = f"--reward {target}"
        tasks.append((source, to_task(_imported(target, source), source)))
    sources: dict[str, str] = {}
    for source, task in tasks:
        if task.name in sources:
            raise PluginError(f"{source}: {sources[task.name]} already has a task called {task.name!r}")
        sources[task.name] = source
    return Registry(task for _, task in tasks)


def to_task(plugin: object, source: str, name: str | None = None) -> Task[Any, Any]:
    """A Task as it is; a function `f(response, solution, **params)` as a task. Raises PluginError."""
    if isinstance(plugin, Task):
        return plugin
    if not callable(plugin):
        raise PluginError(f"{source} is a {type(plugin).__name__}, not a function or a Task")
    declared = getattr(plugin, _DECLARED, _Declared())
    assert isinstance(declared, _Declared)
    title = declared.name or name or getattr(plugin, "__name__", "")
    if not title:
        raise PluginError(f"{source} has no name: give it one with @reward(name=...)")
    first_line = (inspect.getdoc(plugin) or "").strip().partition("\n")[0]
    try:
        call = _Call.of(plugin)
        solution, params = call.schemas()
        for schema in (solution, TypeAdapter(params)):
            schema.json_schema()  # GET /v1/tasks shows both
    except PluginError as error:
        raise PluginError(f"{source}: {error}") from None
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{source}: its parameters cannot be described: {reason}") from None
    return Task(
        name=title,
        summary=declared.summary or first_line,
        formula=declared.formula or first_line,
        floor=declared.floor,
        solution=solution,
        params=params,
        score=call,
        example=declared.example,
    )


def _imported(target: str, source: str) -> object:
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise PluginError(f"{source}: not of the form module:function")
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (Exception, SystemExit) as error:  # other people's code runs here
        reason = " ".join(str(error).split())
        raise PluginError(f"{source} cannot be imported: {type(error).__name__}: {reason}") from None


@dataclass(frozen=True)
class _Call:
    """A plugin's function, called as a task's scorer is."""

    function: Callable[..., Any]
    solution_type: Any
    params: dict[str, tuple[Any, Any]]  # name -> (annotation, default), as create_model takes them
    takes_any_param: bool
    takes_image_size: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> _Call:
        """Raises PluginError for a signature that no item could be given to."""
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
        positional = [one for one in signature.parameters.values() if one.kind in _POSITIONAL]
        if len(positional) < 2:
            raise PluginError("it must take the response and the solution as its first two parameters")
        params: dict[str, tuple[Any, Any]] = {}
        for one in list(signature.parameters.values()):
            if one in positional[:2] or one.kind is one.VAR_POSITIONAL or one.kind is one.VAR_KEYWORD:
                continue
            if one.kind is one.POSITIONAL_ONLY:
                raise PluginError(f"its parameter {one.name} cannot be given by name")
            if one.name != "image_size":
                default = Field() if one.default is one.empty else one.default
                params[one.name] = (hints.get(one.name, Any), default)
        any_param = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
        image_size = "image_size" in signature.parameters
        return cls(function, hints.get(positional[1].name, Any), params, any_param, image_size)

    def schemas(self) -> tuple[TypeAdapter[Any], type[Params]]:
        fields: dict[str, Any] = dict(self.params)
        base = _OpenParams if self.takes_any_param else Params
        return TypeAdapter(self.solution_type), create_model("PluginParams", __base__=base, **fields)

    def __call__(self, sample: Sample[Any, Params]) -> Verdict:
        params = {name: getattr(sample.params, name) for name in self.params} | (sample.params.model_extra or {})
        if self.takes_image_size:
            params["image_size"] = sample.image_size
        answer = self.function(sample.response, sample.solution, **params)
        if inspect.iscoroutine(answer):
            answer = _until_done(answer)
        return _as_verdict(answer)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _OpenParams(Params):
    """Of a function with **params: what it does not name goes there."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _as_verdict(answer: object) -> Verdict:
    """A number, a dict with "reward" (or "score"), or a Verdict. Raises TypeError for anything else."""
    if isinstance(answer, Verdict):
        return answer
    if not isinstance(answer, dict):
        return Verdict(_as_number(answer))
    key = next((key for key in _REWARD_KEYS if key in answer), None)
    if key is None:
        raise TypeError(f"returned a dict without {' or '.join(map(repr, _REWARD_KEYS))}")
    components = {str(name): _as_number(answer[name]) for name in answer if name not in (key, "parsed", "detail")}
    return Verdict(_as_number(answer[key]), components, answer.get("parsed"), str(answer.get("detail") or ""))


def _as_number(value: object) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):  # numpy's and torch's numbers have it too
        raise TypeError(f"returned {type(value).__name__} where a number belongs")
    return float(typing.cast(typing.SupportsFloat, value))


_runner: asyncio.Runner | None = None


def _until_done(answer: Coroutine[Any, Any, object]) -> object:
    """Awaits on one loop that lives as long as the process, so that a plugin may keep a session between calls."""
    global _runner
    if _runner is None:
        _runner = asyncio.Runner()
    return _runner.run(answer)


def import_from_here() -> None:
    """Lets `--reward module:function` name a module of the folder that the server was started in."""
    if "" not in sys.path:
        sys.path.insert(0, "")
