"""Reading peers' requests and answering them: one clear line when refused, in the form of `/v1`, and JSON out.

It knows no dialect. How large a body may be is `bodies`' matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import QueryParams

from ..api import ErrorBody, ErrorInfo, first_problem
from ..registry import BadItem, Registry
from ..scoring import Overloaded

M = TypeVar("M", bound=BaseModel)

_RETRY_AFTER_SECONDS = 1


class Refusal(Exception):
    """A request that is answered with an HTTP error: it is not of the peer's form, or asks for what is not there."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a peer. `task` is the one in the path; `gone` tells whether the client has left."""

    body: bytes
    task: str | None
    query: QueryParams
    gone: Callable[[], Awaitable[bool]]

    def read(self, model: type[M]) -> M:
        """The body as this model. Raises Refusal (422)."""
        try:
            return model.model_validate_json(self.body)
        except ValidationError as error:
            raise Refusal(422, "invalid_request", first_problem(error)) from None

    def read_object(self) -> dict[str, Any]:
        """The body as it is, for dialects that send it back; NaN and infinities may be in it. Raises Refusal (422)."""
        try:
            value = from_json(self.body)
        except ValueError as error:
            raise Refusal(422, "invalid_request", f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refusal(422, "invalid_request", "the body must be a JSON object")
        return value


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
        query: tuple[str, ...] = (),
    ) -> None:
        """One route and, `with_task`, the same with a task's name behind it. `asks` is the body's JSON schema."""

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
                responses={status: {"model": ErrorBody} for status in (404, 413, 422, 500, 503)},
                openapi_extra=_describe(full_path, asks, query),
            )

    async def _answer(self, request: Request, handler: Handler) -> Response:
        try:
            task = request.path_params.get("task")
            if task is not None:
                _check_task(self.registry, task)
            return await handler(Call(await request.body(), task, request.query_params, request.is_disconnected))
        except Refusal as error:
            return failure(error.status, error.code, str(error))
        except Overloaded as error:
            return failure(503, "overloaded", str(error))


def answer(value: Any) -> Response:
    """Any JSON value as a 200. Non-finite numbers are written as Python's clients write and read them."""
    return Response(to_json(value, inf_nan_mode="constants"), media_type="application/json")


def failure(status: int, code: str, message: str) -> Response:
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if status == 503 else {}
    body = ErrorBody(error=ErrorInfo(code=code, message=" ".join(message.split())))
    return Response(body.model_dump_json(), status, headers, "application/json")


def _check_task(registry: Registry, task: str) -> None:
    try:
        registry[task]
    except BadItem as error:
        raise Refusal(404, "no_such_task", str(error)) from None


def _describe(path: str, asks: dict[str, Any] | None, query: tuple[str, ...]) -> dict[str, Any]:
    places = [("path", part[1:-1]) for part in path.split("/") if part.startswith("{")] + [("query", q) for q in query]
    described: dict[str, Any] = {
        "parameters": [
            {"name": name, "in": place, "required": True, "schema": {"type": "string"}} for place, name in places
        ]
    }
    if asks is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": asks}}}
    return described
