"""Who may call this server: the interceptor that asks for a token, and the credentials of its port.

A token opens everything: there are no users and no rights. Health needs none, so that what watches the server must not
know a secret. Without any token every call is let in. The other side is `mmr1.rollout_access`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health

from mmr1.config import RunConfig
from mmr1.credentials import rollout_tokens
from mmr1.rollout_access import TOKEN_KEY, TOKEN_REMEDY, server_files

_OPEN = f"/{health.SERVICE_NAME}/"
_REFUSAL = f"this server asks for a token, in the metadata as `{TOKEN_KEY}: Bearer TOKEN`; {TOKEN_REMEDY}"

_log = structlog.get_logger(__name__)


class RequireToken(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through that brings one of `tokens`. It is turned away before its message is read."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if details.method.startswith(_OPEN) or self._admits(details.invocation_metadata):
            return await continuation(details)
        return _refuse_all

    def _admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        admitted = False
        for key, value in metadata:
            if key == TOKEN_KEY:
                scheme, _, offered = (value if isinstance(value, bytes) else value.encode()).partition(b" ")
                admitted |= scheme.lower() == b"bearer" and self._is_token(offered.strip())
        return admitted

    def _is_token(self, offered: bytes) -> bool:
        """Takes as long for any offer: each token is compared, and each comparison in constant time."""
        found = False
        for token in self._tokens:
            found |= hmac.compare_digest(token, offered)
        return found


async def _refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)


# Whatever the method's kind: the status is all that is sent, and no request is read.
_refuse_all = grpc.stream_stream_rpc_method_handler(_refuse)


def interceptors(config: RunConfig) -> list[grpc.aio.ServerInterceptor]:
    """What the server is made with; empty where everybody is let in. Raises ConfigurationError: the token is none."""
    tokens = rollout_tokens(config.rollout_token_file)
    if not _is_loopback(config.host):
        if not tokens:
            _log.warning("open_to_everybody", host=config.host, remedy="set rollout_token_file or MMR1_ROLLOUT_TOKEN")
        elif config.rollout_tls_cert is None:
            _log.warning("token_travels_unencrypted", host=config.host, remedy="set rollout_tls_cert")
    return [RequireToken(tokens)] if tokens else []


def server_credentials(config: RunConfig) -> grpc.ServerCredentials | None:
    """The credentials of the server's port; None: without TLS.

    Raises:
        ConfigurationError: a certificate or key is missing or is none.
    """
    served = server_files(config)
    pair, ca = served.read_pair(), served.read_ca()
    if pair is None:
        return None
    return grpc.ssl_server_credentials(
        [pair], root_certificates=ca.encode() if ca else None, require_client_auth=ca is not None
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
