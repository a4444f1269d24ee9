"""The contract: what goes over the wire of `/v1`, as pydantic models. Server and client both build on this file.

It knows nothing of HTTP, of tasks or of how a score is made.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

MAX_ID_CHARS = 1024
MAX_TASK_CHARS = 256
MAX_PIXELS = 10**9  # of an image's width or height: far beyond every image, and small enough to calculate with


Pixels = Annotated[int, Field(gt=0, le=MAX_PIXELS)]


class Outcome(StrEnum):
    """What became of one item. Only the first two come with a reward; the last two are never the model's fault."""

    OK = "ok"
    INVALID_OUTPUT = "invalid_output"
    VERIFIER_ERROR = "verifier_error"
    TIMEOUT = "timeout"

    @property
    def has_reward(self) -> bool:
        return self in (Outcome.OK, Outcome.INVALID_OUTPUT)


class _Asked(BaseModel):
    # A misspelt key is an error: silently ignored, it would be found in the trained model.
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answered(BaseModel):
    # A newer server may say more than an older client knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Item(_Asked):
    """One response to score."""

    id: str = Field(max_length=MAX_ID_CHARS, description="the caller's name for this item, returned with its result")
    task: str = Field(max_length=MAX_TASK_CHARS, description="a name that GET /v1/tasks lists")
    response: str = Field(description="what the model wrote, without the prompt")
    solution: JsonValue = Field(description="the truth, in the form that the task's `solution_schema` describes")
    params: dict[str, JsonValue] = Field(default_factory=dict, description="see the task's `params_schema`")
    image_size: tuple[Pixels, Pixels] | None = Field(default=None, description="width and height in pixels")


class Result(_Answered):
    """The verdict on one item. `reward` is a number exactly when the outcome has one."""

    id: str
    outcome: Outcome
    reward: FiniteFloat | None = Field(description="null for verifier_error and timeout; the floor for invalid_output")
    components: dict[str, FiniteFloat] = Field(default_factory=dict, description="the numbers behind the reward")
    parsed: JsonValue = Field(default=None, description="what was read out of the response")
    detail: str = Field(default="", description="one sentence that a person can act on")

    @model_validator(mode="after")
    def _reward_and_outcome_agree(self) -> Self:
        if self.outcome.has_reward != (self.reward is not None):
            raise ValueError(f"outcome {self.outcome.value} with reward {self.reward}")
        return self


class ScoreRequest(_Asked):
    items: list[Item]


class ScoreResponse(_Answered):
    """One result for each item, in the order of the request."""

    results: list[Result]
    version: str = Field(description="of the server")


class Example(_Answered):
    """An item and exactly what the server answers to it."""

    item: Item
    result: Result


class TaskInfo(_Answered):
    """All that a caller has to know to use one task."""

    name: str
    summary: str
    formula: str
    floor: float = Field(description="the reward of invalid_output; never above the worst valid answer's")
    solution_schema: dict[str, Any]
    params_schema: dict[str, Any]
    example: Example | None = Field(default=None, description="null only for a plugin that declares none")


class TaskList(_Answered):
    tasks: list[TaskInfo]
    version: str


class ErrorInfo(_Answered):
    code: Annotated[str, Field(description="stable, for programs")]
    message: Annotated[str, Field(description="one line, for people")]


class ErrorBody(_Answered):
    """The body of every answer that is not 2xx."""

    error: ErrorInfo


def first_problem(error: ValidationError) -> str:
    """The first of a validation's complaints in one line: where, what. Never repeats the input, which may be huge."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
