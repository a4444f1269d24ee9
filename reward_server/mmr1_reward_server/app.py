"""The routes of `/v1`, health and metrics, over whatever `Scoring` it is given. It scores nothing and knows no task."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import __version__
from .api import ErrorBody, Item, ScoreRequest, ScoreResponse, TaskList
from .auth import OPEN_PATHS, SECURITY_SCHEMES, RequireKey, load_keys
from .bodies import BodyLimits, read_body
from .cut_short import CutShort
from .departures import hung_up, unless_left
from .dialects import Defaults, usual_task
from .dialects import router as peers_router
from .dialects.halves import without_halves
from .errors import RequestError, add_error_handlers, json_response, overloaded
from .mathematics import is_installed
from .metrics import Metrics
from .plugins import build_registry
from .registry import BadItem, Registry
from .scoring import Overloaded, Scored, Scoring
from .settings import Settings, SettingsError
from .tracing import Traced, flush, make_provider
from .worker_process import WorkerOptions
from .workers import WorkerPool

logger = logging.getLogger(__name__)

_MAX_PROBLEMS_SHOWN = 5
_REF = "#/components/schemas/"


class PlainRoute(APIRoute):
    """A route whose function takes the Request and returns the Response: FastAPI describes it and does nothing more."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        endpoint = self.endpoint

        async def plain(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = plain


def create_app(settings: Settings, registry: Registry | None = None, scoring: Scoring | None = None) -> FastAPI:
    """The ASGI application. It binds no port; its workers start with its lifespan, or with the first request.

    `registry` and `scoring` belong together and replace the tasks that the settings name and the workers that score
    them. Raises PluginError and SettingsError.
    """
    keys = load_keys(settings.api_key_file)
    metrics = Metrics()
    if registry is None or scoring is None:
        registry = build_registry(settings.reward)
        scoring = _workers(settings, metrics)
    metrics.watch(scoring)
    traces = make_provider()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await scoring.start()
        yield
        await scoring.close()
        if traces is not None:
            flush(traces)

    # The interactive pages load scripts from elsewhere, so they are off; /openapi.json is complete.
    app = FastAPI(
        title="MMR1 reward server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.scoring = scoring
    app.state.num_tasks = len(registry)
    app.include_router(_v1_routes(settings, registry, scoring, metrics))
    app.include_router(_operations_routes(scoring, metrics))
    app.include_router(_peers_routes(settings, registry, scoring, metrics))
    add_error_handlers(app)
    # The last one is the outermost.
    app.add_middleware(
        BodyLimits,
        max_body_bytes=settings.max_body_bytes,
        max_pending_bytes=settings.max_pending_bytes,
        max_json_values=settings.max_json_values,
        body_seconds=settings.body_seconds,
    )
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    app.add_middleware(CutShort)
    app.add_middleware(_Observed, metrics=metrics, access_log=settings.access_log)
    if traces is not None:
        app.add_middleware(Traced, provider=traces)
    _complete_document(app, with_keys=bool(keys))
    return app


def _workers(settings: Settings, metrics: Metrics) -> WorkerPool:
    return WorkerPool(
        WorkerOptions(settings.reward, settings.max_response_chars),
        num_workers=settings.workers,
        item_deadline_seconds=settings.item_deadline_seconds,
        max_pending_items=settings.max_pending_items,
        on_restart=metrics.worker_restarted,
    )


def _v1_routes(settings: Settings, registry: Registry, scoring: Scoring, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["scoring"], route_class=PlainRoute)
    task_list = json_response(TaskList(tasks=[task.info() for task in registry], version=__version__))

    @router.post(
        "/score",
        response_model=ScoreResponse,
        responses={status: {"model": ErrorBody} for status in (400, 401, 408, 413, 422, 503)},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(ScoreRequest)}}}
        },
    )
    async def score(request: Request) -> Response:
        """Scores items. What a model wrote never fails the request: look at each result's `outcome`."""
        items = parse_request(await read_body(request)).items
        if len(items) > settings.max_items:
            message = f"{len(items)} items in one request, the limit is {settings.max_items}: send them in several"
            raise RequestError(413, "too_many_items", message)
        try:
            scored = await unless_left(lambda: hung_up(request.receive), scoring.score(items))
        except Overloaded as error:
            raise overloaded(str(error)) from None
        for item, one in zip(items, scored, strict=True):
            metrics.item(item.task if item.task in registry else "unknown", one)
        return Response(to_score_response(scored), media_type="application/json")

    @router.get("/tasks", response_model=TaskList, responses={401: {"model": ErrorBody}})
    async def tasks(_: Request) -> Response:
        """Every task: its formula, its floor, the forms of its solution and params, and an example."""
        return task_list

    return router


def _peers_routes(settings: Settings, registry: Registry, scoring: Scoring, metrics: Metrics) -> APIRouter:
    def count(item: Item, scored: Scored) -> None:
        metrics.item(item.task, scored)

    default_task = settings.default_task or usual_task(registry)
    if default_task == "accuracy" and not is_installed():
        logger.warning(
            "peers' requests that name no task are for accuracy, which cannot compare mathematics: install "
            "'mmr1-reward-server[math]', or name another task with --default-task"
        )
    defaults = Defaults(
        default_task,
        max_items=settings.max_items,
        max_held_bytes=settings.max_pending_bytes,
        correct_from=settings.correct_from,
        on_scored=count,
        on_held=metrics.held,
    )
    try:
        return peers_router(scoring, registry, defaults)
    except BadItem as error:
        raise SettingsError(f"--default-task: {error}") from None


def _operations_routes(scoring: Scoring, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.head("/readyz", include_in_schema=False)
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
    """Halves of surrogate pairs are read as U+FFFD: see `halves.py`.

    Raises RequestError: 400 when it is not JSON or nested too deeply, 422 when it is of another form.
    """
    try:
        return _parsed(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        if "recursion limit" in problems[0]["msg"]:
            raise RequestError(400, "too_deep", "lists and objects are nested too deeply in the body")
        raise RequestError(400, "not_json", problems[0]["msg"])
    shown = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems[:_MAX_PROBLEMS_SHOWN]]
    more = f"; and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    raise RequestError(422, "invalid_request", "; ".join(shown) + more)


def _parsed(body: bytes) -> ScoreRequest:
    """Raises ValidationError."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError:
        mended = without_halves(body)
        if mended == body:
            raise
    return ScoreRequest.model_validate_json(mended)


def to_score_response(scored: Sequence[Scored]) -> bytes:
    """A ScoreResponse as JSON, put together from results that are JSON already."""
    return b'{"results":[%b],"version":"%b"}' % (b",".join([one.encoded for one in scored]), __version__.encode())


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_REF}{model.__name__}"}


def _complete_document(app: FastAPI, *, with_keys: bool) -> None:
    """Adds to the OpenAPI document what FastAPI does not see: bodies that routes read by themselves (one parse,
    bounded), and keys.
    """
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        schema = ScoreRequest.model_json_schema(ref_template=_REF + "{model}")
        schemas = document["components"]["schemas"]
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas.setdefault("ScoreRequest", schema)
        if with_keys:
            document["components"]["securitySchemes"] = SECURITY_SCHEMES
            document["security"] = [{name: []} for name in SECURITY_SCHEMES]
            for path in OPEN_PATHS & set(document["paths"]):
                for operation in document["paths"][path].values():
                    operation["security"] = []
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
