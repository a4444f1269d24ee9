"""Reading peers' requests and answering them: the same for every dialect, of which it knows none.

What is refused is a RequestError of the application, so the limits and the form of errors are those of `/v1`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import QueryParams

from ..api import ErrorBody, first_problem
from ..bodies import read_body
from ..errors import RequestError, overloaded
from ..registry import BadItem, Registry
from ..scoring import Overloaded, Scored
from .halves import without_halves

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a peer. `task` is the one in the path; `gone` tells whether the client has left."""

    body: bytes
    task: str | None
    query: QueryParams
    gone: Callable[[], Awaitable[bool]]

    def read(self, model: type[M]) -> M:
        """The body as this model. Raises RequestError (422)."""
        try:
            return self._parsed(model.model_validate_json)
        except ValidationError as error:
            raise RequestError(422, "invalid_request", first_problem(error)) from None

    def read_object(self) -> dict[str, Any]:
        """The body as it is, for dialects that send it back; NaN may be in it. Raises RequestError (422)."""
        try:
            value = self._parsed(from_json)
        except ValueError as error:
            raise RequestError(422, "invalid_request", f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RequestError(422, "invalid_request", "the body must be a JSON object")
        return value

    def _parsed(self, parse: Callable[[bytes], T]) -> T:
        """Whatever `parse` raises, a ValueError, unless it is for halves of surrogate pairs: see `halves.py`."""
        try:
            return parse(self.body)
        except ValueError:
            body = without_halves(self.body)
            if body == self.body:
                raise
        return parse(body)


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Adds a dialect's routes to its router, each described in the OpenAPI document."""

    router: APIRouter
    registry: Registry

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        asks: dict[str, Any] | None,
        answers: Any,
        with_task: bool = False,
        query: dict[str, str] | None = None,
        body_required: bool = True,
        may_fail: bool = False,
        with_head: bool = False,
    ) -> None:
        """One route and, `with_task`, the same with a task's name behind it. `asks` is the body's JSON schema; `query`
        names the parameters that may be there, and says what each is; `may_fail`: a verdict that failed is an HTTP
        error, see `not_scored`; `with_head`: probes may ask with HEAD.
        """
        statuses = (401, 404, 408, 413, 422, *((500,) if may_fail else ()), 503)

        async def endpoint(request: Request) -> Response:
            return await self._answer(request, handler)

        for full_path in (path, path + "/{task}") if with_task else (path,):
            self.router.add_api_route(
                full_path,
                endpoint,
                methods=[method],
                response_model=answers,
                name=f"{method} {full_path}",
                description=handler.__doc__,
                responses={status: {"model": ErrorBody} for status in statuses},
                openapi_extra=_describe(full_path, asks, body_required, query or {}, self.registry),
            )
            if with_head:
                self.router.add_api_route(full_path, endpoint, methods=["HEAD"], include_in_schema=False)

    async def _answer(self, request: Request, handler: Handler) -> Response:
        task = request.path_params.get("task")
        if task is not None:
            _check_task(self.registry, task)
        call = Call(await read_body(request), task, request.query_params, request.is_disconnected)
        try:
            return await handler(call)
        except Overloaded as error:
            raise overloaded(str(error)) from None


def answer(value: Any) -> Response:
    """Any JSON value as a 200. Non-finite numbers are written as Python's clients write and read them."""
    return Response(to_json(value, inf_nan_mode="constants"), media_type="application/json")


def not_scored(scored: Scored) -> RequestError:
    """A verdict without a reward, for a client that knows no other word for it: 422 if the item is to blame, or 500."""
    return RequestError(422 if scored.refused else 500, scored.outcome.value, scored.result.detail)


def _check_task(registry: Registry, task: str) -> None:
    try:
        registry[task]
    except BadItem as error:
        raise RequestError(404, "no_such_task", str(error)) from None


def _describe(
    path: str, asks: dict[str, Any] | None, body_required: bool, query: dict[str, str], registry: Registry
) -> dict[str, Any]:
    text, task = {"type": "string"}, {"type": "string", "enum": [task.name for task in registry]}
    places = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": task if name == "task" else text} for name in places
    ]
    for name, description in query.items():
        parameters.append({"name": name, "in": "query", "required": False, "description": description, "schema": text})
    described: dict[str, Any] = {"parameters": parameters}
    if asks is not None:
        described["requestBody"] = {"required": body_required, "content": {"application/json": {"schema": asks}}}
    return described
