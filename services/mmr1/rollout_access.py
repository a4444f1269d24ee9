"""How a run's processes get into its rollout servers: the token they show, TLS, and what is wrong when it fails.

The other side is `mmr1_rollout_server.auth`. Knows no verb of the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import grpc

from mmr1.config import RunConfig
from mmr1.credentials import rollout_tokens
from mmr1.errors import ConfigurationError
from mmr1.tls import TlsFiles, files, speaks_tls, tls_fault

TOKEN_KEY = "authorization"  # in the metadata, as `Bearer TOKEN`
TOKEN_REMEDY = "give both sides the same rollout_token_file or MMR1_ROLLOUT_TOKEN"


@dataclass(frozen=True, slots=True)
class RolloutAccess:
    """What a caller shows and trusts. Without anything: an open server, without TLS."""

    token: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    name: str | None = None  # in the server's certificate, instead of its address

    @classmethod
    def from_config(cls, config: RunConfig, environment: Mapping[str, str] | None = None) -> Self:
        """Read what a caller needs.

        Raises:
            ConfigurationError: a token, certificate or key is missing or is none.
        """
        tokens = rollout_tokens(config.rollout_token_file, environment)
        tls = None
        if config.rollout_tls_ca is not None:
            tls = files(
                ca=("rollout_tls_ca", config.rollout_tls_ca),
                certificate=("rollout_client_cert", config.rollout_client_cert),
                key=("rollout_client_key", config.rollout_client_key),
            )
            tls.context()  # all of it is what it should be
        return cls(tokens[0] if tokens else None, tls, config.rollout_tls_name)

    @classmethod
    def of_own_server(cls, config: RunConfig, name: str) -> Self:
        """A rollout server's health check of itself, from what the server itself reads: no file of its callers.

        It trusts the server's own certificate, which holds `name`, and shows it where callers must show one.

        Raises:
            ConfigurationError: a certificate or key is missing or is none.
        """
        served = server_files(config)
        shown = served if served.ca is not None else TlsFiles()
        tls = TlsFiles(served.certificate, shown.certificate, shown.key)
        tls.context()
        return cls(None, tls, name)

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel that shows the token with each call."""
        if self.tls is None:
            channel = grpc.insecure_channel(address, options=options)
        else:
            channel = grpc.secure_channel(address, self._credentials(self.tls), options=[*options, *self._name()])
        return channel if self.token is None else grpc.intercept_channel(channel, _ShowToken(self.token))

    def open_channel(self, address: str) -> grpc.aio.Channel:
        """A channel of asyncio without the token: for health, which asks for none."""
        if self.tls is None:
            return grpc.aio.insecure_channel(address)
        return grpc.aio.secure_channel(address, self._credentials(self.tls), options=self._name())

    def refusal(self, address: str, error: grpc.RpcError) -> ConfigurationError | None:
        """What the user must change when a call failed with `error`; None: nothing that access could mend."""
        code = error.code() if isinstance(error, grpc.Call) else None
        if code is grpc.StatusCode.UNAUTHENTICATED:
            said = "refuses our token" if self.token else "asks for a token and we have none"
            return ConfigurationError(f"rollout server {address} {said}; {TOKEN_REMEDY}")
        if code is grpc.StatusCode.UNAVAILABLE:
            host, _, port = address.rpartition(":")
            return self._tls_refusal(address, host, int(port))
        return None

    def _tls_refusal(self, address: str, host: str, port: int) -> ConfigurationError | None:
        if self.tls is None:
            if not speaks_tls(host, port):
                return None
            return ConfigurationError(f"rollout server {address} speaks TLS and we do not; set rollout_tls_ca")
        fault = tls_fault(host, port, self.tls.context(("h2",)), self.name)
        if fault is None:
            return None
        return ConfigurationError(
            f"rollout server {address}: {fault}; give both sides certificates of the same CAs (rollout_tls_cert, "
            "rollout_tls_ca, rollout_tls_name, rollout_tls_client_ca, rollout_client_cert), or none of these"
        )

    def _credentials(self, tls: TlsFiles) -> grpc.ChannelCredentials:
        ca, pair = tls.read_ca(), tls.read_pair()
        key, chain = pair or (None, None)
        return grpc.ssl_channel_credentials(ca.encode() if ca else None, key, chain)

    def _name(self) -> list[tuple[str, str]]:
        return [("grpc.ssl_target_name_override", self.name)] if self.name else []


def server_files(config: RunConfig) -> TlsFiles:
    """What a rollout server shows, and the CA of the callers it lets in; empty: without TLS."""
    return files(
        ca=("rollout_tls_client_ca", config.rollout_tls_client_ca),
        certificate=("rollout_tls_cert", config.rollout_tls_cert),
        key=("rollout_tls_key", config.rollout_tls_key),
    )


def check_rollout_access(config: RunConfig) -> None:
    """Both sides' files are what they should be. Raises ConfigurationError."""
    RolloutAccess.from_config(config)
    served = server_files(config)
    served.read_ca()
    served.read_pair()


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _ShowToken(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """gRPC's own credentials of a call would refuse a channel without TLS, which one machine may have."""

    def __init__(self, token: str) -> None:
        self._entry = (TOKEN_KEY, f"Bearer {token}")

    def intercept_unary_unary(
        self, continuation: Callable[[grpc.ClientCallDetails, Any], Any], details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        shown = _Details(
            details.method,
            details.timeout,
            [*(details.metadata or ()), self._entry],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        return continuation(shown, request)
