"""An asynchronous client of `/v1`: whatever happens to the server or the network is never mistaken for a bad answer.

It knows no task and imports no web framework.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import httpx
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from .api import ErrorBody, Item, Outcome, Result, ScoreRequest, ScoreResponse, TaskInfo, TaskList, first_problem
from .traceparent import trace_headers

# Overload, and what a proxy says while the server behind it restarts.
_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0
_CHARS_PER_PART = 4 * 2**20  # below the size that a server takes, even where each is written as an escape


class RewardServerError(Exception):
    """The server gave no usable answer. `outcome`: VERIFIER_ERROR, or TIMEOUT if one might still have come."""

    def __init__(self, message: str, outcome: Outcome = Outcome.VERIFIER_ERROR) -> None:
        super().__init__(message)
        self.outcome = outcome


class RequestRefused(RewardServerError):
    """The server does not take this request, whatever its own state (4xx): asked again it would say the same."""


class KeyRefused(RequestRefused):
    """No key, or one that the server does not know (401, 403)."""


class RequestTooLarge(RequestRefused):
    """More bytes or items than the server takes at once (413)."""


class _Transient(Exception):
    """Worth another try, `after_seconds` from now at the earliest."""

    def __init__(self, message: str, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class RewardClient:
    """Asks one reward server. Use it as `async with`, or call `aclose`; it belongs to one event loop.

    `deadline_seconds` bounds each call, retries and waiting included. `transport` replaces the network, for instance by
    `httpx.ASGITransport(app)`. `api_key` goes with each request. `verify`, for https: True trusts the usual
    authorities, a path the CA certificate in that file (PEM), an SSLContext may also hold a certificate of the
    client's own; False trusts anybody. Raises ValueError for a `base_url` that is no http URL and for a key that fits
    into no header, OSError for a CA file that cannot be read.
    """

    def __init__(
        self,
        base_url: str,
        deadline_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        api_key: str | None = None,
        verify: ssl.SSLContext | str | bool = True,
    ) -> None:
        self._base_url = _without_userinfo(base_url)
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            wrong = f"not the URL of a reward server: {self._base_url!r}; it looks like http://127.0.0.1:8000"
            raise ValueError(wrong)
        # httpx logs the URL of each request, so a password is taken out of it.
        auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self._deadline = deadline_seconds
        # The deadline is ours (httpx's are per read); a proxy from the environment has no place between these services.
        self._http = httpx.AsyncClient(
            base_url=url.copy_with(userinfo=b""),
            auth=auth,
            timeout=None,
            transport=transport,
            trust_env=False,
            headers=_key_header(api_key),
            verify=ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify,
        )

    async def score(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order. Never raises for what the server or the network does.

        Without a usable answer every item's outcome is `verifier_error`, or `timeout` when one was still expected at
        the deadline; `detail` says why.
        """
        try:
            return await self.score_or_raise(items)
        except RewardServerError as error:
            return _without_reward(items, error)

    async def score_or_raise(self, items: Sequence[Item]) -> list[Result]:
        """As `score`, for callers to whom a server out of reach is not a failed verifier. Raises RewardServerError."""
        if not items:
            return []
        answer = await self._call("POST", "/v1/score", _encoded(ScoreRequest(items=list(items))))
        try:
            results = ScoreResponse.model_validate_json(answer).results
        except ValidationError as error:
            raise RewardServerError(f"{self._base_url} answered nonsense: {first_problem(error)}") from None
        if [result.id for result in results] != [item.id for item in items]:
            raise RewardServerError(f"{self._base_url} answered other items than it was asked for")
        return results

    async def score_in_parts(
        self, items: Sequence[Item], *, items_per_request: int = 256, max_requests: int = 4
    ) -> list[Result]:
        """As `score`, for any number of items: in several requests, `max_requests` of them at the same time.

        The deadline is each request's own, from when it is sent; one that fails costs no other's results. One that is
        too large for the server is sent again in halves.
        """
        free = asyncio.Semaphore(max_requests)

        async def ask(part: Sequence[Item]) -> list[Result]:
            try:
                async with free:
                    return await self.score_or_raise(part)
            except RequestTooLarge as error:
                if len(part) == 1:
                    return _without_reward(part, error)
            except RewardServerError as error:
                return _without_reward(part, error)
            half = len(part) // 2
            return [*await ask(part[:half]), *await ask(part[half:])]

        answers = await asyncio.gather(*(ask(part) for part in _parts(items, items_per_request)))
        return [result for part in answers for result in part]

    async def tasks(self) -> list[TaskInfo]:
        """What the server offers, so that a wrong task is found before a run starts. Raises RewardServerError."""
        answer = await self._call("GET", "/v1/tasks")
        try:
            return TaskList.model_validate_json(answer).tasks
        except ValidationError as error:
            raise RewardServerError(f"{self._base_url} answered nonsense: {first_problem(error)}") from None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _call(self, method: str, path: str, body: str | None = None) -> bytes:
        """The body of a 200, after as many tries as the deadline allows. Raises RewardServerError."""
        last: _Transient | None = None
        try:
            async with asyncio.timeout(self._deadline):
                async for attempt in AsyncRetrying(retry=retry_if_exception_type(_Transient), wait=_wait):
                    last = None
                    with attempt:
                        try:
                            return await self._try(method, path, body)
                        except _Transient as error:
                            last = error
                            raise
        except TimeoutError:
            pass
        if last is not None:
            raise RewardServerError(f"no answer from {self._base_url} within {self._deadline:g} s: {last}")
        raise RewardServerError(f"{self._base_url} did not answer within {self._deadline:g} s", Outcome.TIMEOUT)

    async def _try(self, method: str, path: str, body: str | None) -> bytes:
        headers = trace_headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = await self._http.request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise _Transient(f"{type(error).__name__}: {error}") from None
        except httpx.HTTPError as error:
            raise RewardServerError(f"{self._base_url}: {type(error).__name__}: {error}") from None
        if response.status_code == httpx.codes.OK:
            return response.content
        message = f"{self._base_url} answered {response.status_code}: {_error_message(response)}"
        if response.status_code in _RETRIED_STATUSES:
            raise _Transient(message, _retry_after(response))
        raise _kind_of(response.status_code)(message)


def _kind_of(status: int) -> type[RewardServerError]:
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return RequestTooLarge
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return KeyRefused
    return RequestRefused if httpx.codes.is_client_error(status) else RewardServerError


def _encoded(request: ScoreRequest) -> str:
    try:
        return request.model_dump_json()
    except PydanticSerializationError:
        # Half of a surrogate pair, which JSON files can hold and UTF-8 cannot: as an escape, the server reads it as
        # U+FFFD. Slower, but one text costs no other item.
        return json.dumps(request.model_dump())


def _without_reward(items: Sequence[Item], error: RewardServerError) -> list[Result]:
    return [Result(id=item.id, outcome=error.outcome, reward=None, detail=str(error)) for item in items]


def _parts(items: Sequence[Item], items_per_part: int) -> Iterator[list[Item]]:
    """Of so many items at most, and fewer of long responses."""
    part: list[Item] = []
    num_chars = 0
    for item in items:
        if part and (len(part) == items_per_part or num_chars + len(item.response) > _CHARS_PER_PART):
            yield part
            part, num_chars = [], 0
        part.append(item)
        num_chars += len(item.response)
    if part:
        yield part


def _without_userinfo(url: str) -> str:
    """For messages. Takes away all up to the last @, so that a password of odd characters leaves nothing behind."""
    before, at, rest = url.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme}{separator}{rest}" if at and separator else rest


def _key_header(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("an API key is made of ASCII characters without spaces")
    return {"Authorization": f"Bearer {key}"}


_back_off = wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)
_jitter = wait_random(0, _FIRST_WAIT_SECONDS)


def _wait(state: RetryCallState) -> float:
    """Exponential with jitter, and never before the server wants to be asked again."""
    error = state.outcome.exception() if state.outcome else None
    return _back_off(state) + _jitter(state) + (error.after_seconds if isinstance(error, _Transient) else 0.0)


def _retry_after(response: httpx.Response) -> float:
    """Retry-After in seconds; its other form, a date, counts as none."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.0


def _error_message(response: httpx.Response) -> str:
    try:
        return ErrorBody.model_validate_json(response.content).error.message
    except ValidationError:
        return response.text[:200]
