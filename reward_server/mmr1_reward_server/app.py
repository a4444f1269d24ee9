"""The routes of `/v1`, health and metrics, over whatever `Scoring` it is given. It scores nothing and knows no task."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import __version__
from .api import ErrorBody, ErrorInfo, ScoreRequest, ScoreResponse, TaskList
from .metrics import Metrics
from .registry import Registry
from .scoring import Overloaded, Scoring
from .settings import Settings
from .threads import ThreadScoring

logger = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 1
_MAX_PROBLEMS_SHOWN = 5
_DISCARDED_BODIES = 4  # times the limit, of a body that is over it
_REF = "#/components/schemas/"


class RequestError(Exception):
    """A request that is refused as a whole."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(error=ErrorInfo(code=code, message=message))
        self.headers = headers


def create_app(settings: Settings, registry: Registry) -> FastAPI:
    """The ASGI application. Nothing runs until its lifespan starts; it binds no port."""
    scoring = ThreadScoring(
        registry,
        num_threads=settings.num_threads,
        item_deadline_seconds=settings.item_deadline_seconds,
        max_response_chars=settings.max_response_chars,
        max_pending_items=settings.max_pending_items,
        max_stuck_threads=settings.max_stuck_threads,
    )
    metrics = Metrics(lambda: scoring.num_pending)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await scoring.close()

    # The interactive pages load scripts from elsewhere, so they are off; /openapi.json is complete.
    app = FastAPI(
        title="MMR1 reward server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.include_router(_v1_routes(settings, registry, scoring, metrics))
    app.include_router(_operations_routes(scoring, metrics))
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(_Observed, metrics=metrics, access_log=settings.access_log)
    _describe_request_bodies(app)
    return app


def _v1_routes(settings: Settings, registry: Registry, scoring: Scoring, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["scoring"])
    task_list = TaskList(tasks=[task.info() for task in registry], version=__version__)

    @router.post(
        "/score",
        response_model=ScoreResponse,
        responses={status: {"model": ErrorBody} for status in (400, 413, 422, 503)},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(ScoreRequest)}}}
        },
    )
    async def score(request: Request) -> Response:
        """Scores items. What a model wrote never fails the request: look at each result's `outcome`."""
        items = parse_request(await _read_body(request, settings.max_body_bytes)).items
        if len(items) > settings.max_items:
            message = f"{len(items)} items in one request, the limit is {settings.max_items}: send them in several"
            raise RequestError(413, "too_many_items", message)
        try:
            scored = await scoring.score(items)
        except Overloaded as error:
            raise RequestError(503, "overloaded", str(error), {"Retry-After": str(_RETRY_AFTER_SECONDS)}) from None
        for item, one in zip(items, scored, strict=True):
            metrics.item(item.task if item.task in registry else "unknown", one.result, one.seconds)
        return _json(ScoreResponse(results=[one.result for one in scored], version=__version__))

    @router.get("/tasks")
    async def tasks() -> TaskList:
        """Every task: its formula, its floor, the forms of its solution and params, and an example."""
        return task_list

    return router


def _operations_routes(scoring: Scoring, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz() -> dict[str, str]:
        """Items may be sent."""
        if reason := scoring.unready:
            raise RequestError(503, "not_ready", reason)
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Prometheus' text format."""
        return Response(metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def parse_request(body: bytes) -> ScoreRequest:
    """Raises RequestError: 400 when it is not JSON, 422 when it is of another form."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        raise RequestError(400, "not_json", problems[0]["msg"])
    shown = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems[:_MAX_PROBLEMS_SHOWN]]
    more = f"; and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    raise RequestError(422, "invalid_request", "; ".join(shown) + more)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, held to its limit while it arrives: a declared length can be missing or false.

    What is over the limit is read on and thrown away for a while, since closing at once would reset the connection and
    lose the answer that says why.
    """
    body = bytearray()
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= max_bytes:
            body += chunk
        elif num_bytes > _DISCARDED_BODIES * max_bytes:
            break
    if num_bytes > max_bytes:
        message = f"the body exceeds {max_bytes} bytes: send fewer items at a time"
        raise RequestError(413, "body_too_large", message, {"Connection": "close"})
    return bytes(body)


def _json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json(error.body, error.status, error.headers)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = ErrorBody(error=ErrorInfo(code="http_error", message=str(error.detail)))
    return _json(body, error.status_code, dict(error.headers or {}))


async def _answer_bug(_: Request, error: Exception) -> Response:
    return _json(
        ErrorBody(error=ErrorInfo(code="internal", message=f"a bug in the server: {type(error).__name__}")), 500
    )


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_REF}{model.__name__}"}


def _describe_request_bodies(app: FastAPI) -> None:
    """Adds the schema of the bodies that routes read by themselves (one parse, bounded) to the OpenAPI document."""
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        schema = ScoreRequest.model_json_schema(ref_template=_REF + "{model}")
        schemas = document["components"]["schemas"]
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas.setdefault("ScoreRequest", schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class _Observed:
    """Counts, times and (when asked) logs every request, those that no route takes included."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0  # stays so when the client leaves before an answer begins

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = status or 500  # the server's last resort answers, outside of here
            raise
        finally:
            seconds = time.monotonic() - began
            # Routers write the matched route into the scope; any other path would be a label of its own for ever.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status, seconds)
            if self._access_log:
                fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
                logger.info("request", extra={"fields": fields})
