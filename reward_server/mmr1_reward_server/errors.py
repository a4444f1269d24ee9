"""Refusals: a request that is answered as a whole with an ErrorBody, wherever in the server that is decided.

It decides nothing; a peer's route that has another form for errors catches RequestError itself.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .api import ErrorBody, ErrorInfo

RETRY_AFTER_SECONDS = 1

_MAX_MESSAGE_CHARS = 1000


class RequestError(HTTPException):
    """A request that is refused as a whole. The message may hold what the request says: it is cut off, on one line."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        message = " ".join(message[: 2 * _MAX_MESSAGE_CHARS].split())[:_MAX_MESSAGE_CHARS]
        super().__init__(status, message, headers)
        self.body = ErrorBody(error=ErrorInfo(code=code, message=message))


def overloaded(message: str, **headers: str) -> RequestError:
    """503: nothing of the request was scored, it may be sent again."""
    return RequestError(503, "overloaded", message, {"Retry-After": str(RETRY_AFTER_SECONDS), **headers})


def to_response(error: RequestError) -> Response:
    return json_response(error.body, error.status_code, dict(error.headers or {}))


def json_response(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return to_response(error)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = ErrorBody(error=ErrorInfo(code="http_error", message=str(error.detail)))
    return json_response(body, error.status_code, dict(error.headers or {}))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    """The client left in the middle of its body: no bug, and nobody to tell."""
    return Response(status_code=400)


async def _answer_bug(_: Request, error: Exception) -> Response:
    message = f"a bug in the server: {type(error).__name__}"
    return json_response(ErrorBody(error=ErrorInfo(code="internal", message=message)), 500)
