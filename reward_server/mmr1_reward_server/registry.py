"""What a task is, and the set of tasks a server offers. It knows no particular task, no HTTP and no threads."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from .api import Example, Item, TaskInfo, first_problem

S = TypeVar("S")
P = TypeVar("P", bound="Params")


class Params(BaseModel):
    """Base of every task's parameters: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadItem(Exception):
    """The caller's item cannot be scored (unknown task, wrong params, a solution of another form). Says why."""


class InvalidOutput(Exception):
    """A scorer raises this when the response holds nothing to score: the item gets the task's floor."""

    def __init__(self, detail: str, parsed: JsonValue = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.parsed = parsed


@dataclass(frozen=True, slots=True)
class Sample(Generic[S, P]):
    """What a scorer is given: the response as text, solution and params validated. `image_size` is (width, height)."""

    response: str
    solution: S
    params: P
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer returns for a response that it could read."""

    reward: float
    components: dict[str, float] = field(default_factory=dict)
    parsed: JsonValue = None
    detail: str = ""


@dataclass(frozen=True)
class Task(Generic[S, P]):
    """One way of scoring. `score` is an ordinary function that may run in any thread or process.

    `score` returns a Verdict, or raises InvalidOutput (the model's fault); anything else it raises is a verifier_error.
    `floor` is the floor with default params; where params change it, `floor_for` gives it, and the formula says so.
    `keeps_special_tokens`: the formula is about the chat template's end marks too, so whoever takes a response out of a
    decoded text leaves them in it.
    """

    name: str
    summary: str
    formula: str
    floor: float
    solution: TypeAdapter[S]
    params: type[P]
    score: Callable[[Sample[S, P]], Verdict]
    example: Example | None  # only a plugin may have none
    floor_for: Callable[[P], float] | None = None
    keeps_special_tokens: bool = False

    def floor_with(self, params: P) -> float:
        return self.floor if self.floor_for is None else self.floor_for(params)

    def read(self, item: Item) -> Sample[S, P]:
        """Validates the caller's part of an item. Raises BadItem."""
        try:
            params = self.params.model_validate(item.params)
        except ValidationError as error:
            raise BadItem(f"params of task {self.name}: {first_problem(error)}") from None
        try:
            solution = self.solution.validate_python(item.solution)
        except ValidationError as error:
            raise BadItem(f"solution for task {self.name}: {first_problem(error)}") from None
        return Sample(item.response, solution, params, item.image_size)

    def info(self) -> TaskInfo:
        return TaskInfo(
            name=self.name,
            summary=self.summary,
            formula=self.formula,
            floor=self.floor,
            solution_schema=self.solution.json_schema(),
            params_schema=self.params.model_json_schema(),
            example=self.example,
        )


class Registry:
    """The tasks of one server, by name."""

    def __init__(self, tasks: Iterable[Task[Any, Any]]) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        for task in tasks:
            if task.name in self._tasks:
                raise ValueError(f"two tasks are called {task.name}")
            self._tasks[task.name] = task

    def __getitem__(self, name: str) -> Task[Any, Any]:
        """Raises BadItem with the nearest real name."""
        try:
            return self._tasks[name]
        except KeyError:
            near = difflib.get_close_matches(name[:64], self._tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._tasks)}"
            raise BadItem(f"no task {name[:64]!r}; {hint}") from None

    def floor_of(self, item: Item) -> float:
        """What `invalid_output` gives for this item: its task's floor with its params. Raises BadItem."""
        task = self[item.task]
        try:
            return task.floor_with(task.params.model_validate(item.params))
        except ValidationError:
            return task.floor

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)
