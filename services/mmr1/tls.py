"""TLS between a run's services: its files, read before anything starts, and what is wrong when two sides do not meet.

The libraries that speak to each other only say that there is no connection. A handshake made here says why: the other
side speaks no TLS, or speaks it and we do not, or one side does not trust the other's certificate. Knows no service.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from mmr1.errors import ConfigurationError

PROBE_SECONDS = 2.0
_ANSWER_SECONDS = 0.5  # in which a server that turns our certificate down says so, after the handshake
_AGAIN_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What one side of a connection shows and trusts, and the options that named the files."""

    ca: tuple[str, Path] | None = None
    certificate: tuple[str, Path] | None = None
    key: tuple[str, Path] | None = None

    def context(self, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
        """A client's context; without a CA it trusts the system's.

        Raises:
            ConfigurationError: a file is missing or is not what its option asks for.
        """
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=self.read_ca())
        self._load_pair(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def read_ca(self) -> str | None:
        """The CA's PEM. Raises ConfigurationError: it cannot be read or is none."""
        if self.ca is None:
            return None
        option, path = self.ca
        text = _read(option, path)
        try:
            ssl.create_default_context(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(f"{option} {path}: {_reason(error)}; give certificates in PEM") from None
        return text

    def read_pair(self) -> tuple[bytes, bytes] | None:
        """The PEM of key and certificate chain, in gRPC's order. Raises ConfigurationError: they are no pair."""
        if self.certificate is None or self.key is None:
            return None
        self._load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return _read(*self.key).encode(), _read(*self.certificate).encode()

    def _load_pair(self, context: ssl.SSLContext) -> None:
        if self.certificate is None or self.key is None:
            return
        (option, path), (key_option, key_path) = self.certificate, self.key
        for each in (self.certificate, self.key):
            _read(*each)
        try:
            context.load_cert_chain(path, key_path, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"{option} {path}, {key_option} {key_path}: {_reason(error)}; give a certificate chain and its key, "
                "both PEM, the key without a password"
            ) from None


def files(**named: tuple[str, Path | None]) -> TlsFiles:
    """TlsFiles of (option, path) pairs, those without a path left out."""
    return TlsFiles(**{name: (option, path) for name, (option, path) in named.items() if path is not None})


def speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS server is there, whatever its certificate. Silence and refusal are no."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except (OSError, ValueError):
        return False


def tls_fault(host: str, port: int, context: ssl.SSLContext, name: str | None = None) -> str | None:
    """Why `context` makes no TLS connection there, in a few words; None: it does, or nobody answers at all."""
    fault = _handshake_fault(host, port, context, name)
    if fault is not None:
        time.sleep(_AGAIN_SECONDS)  # a server that ended at that moment is no wrong certificate
        fault = _handshake_fault(host, port, context, name)
    return fault


def _handshake_fault(host: str, port: int, context: ssl.SSLContext, name: str | None) -> str | None:
    try:
        with (
            socket.create_connection((host, port), PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name or host) as secured,
        ):
            return _after_handshake(secured)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message})"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return "it speaks no TLS"
        if error.reason and "ALERT" in error.reason:
            return f"it turns our certificate down ({error.reason.lower().replace('_', ' ')})"
        return None
    except (OSError, ValueError):
        return None


def _after_handshake(secured: ssl.SSLSocket) -> str | None:
    """TLS 1.3 turns a client's certificate down only after the client's handshake: by an alert, or by hanging up."""
    secured.settimeout(_ANSWER_SECONDS)
    try:
        if secured.recv(1):
            return None
    except TimeoutError:
        return None
    except ConnectionError:
        pass
    return "it hangs up after the handshake: it asks for a certificate, or does not trust the one that we show"


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="ignore")  # comments may hold anything
    except OSError as error:
        raise ConfigurationError(f"{option} {path} cannot be read: {error.strerror}; give a readable file") from None


def _reason(error: Exception) -> str:
    """OpenSSL's short name of what is wrong, where it has one. Never a file's content."""
    return str(getattr(error, "reason", None) or error)


def _no_password() -> str:
    """Without this OpenSSL would ask for one on the terminal."""
    raise ValueError("the key has a password")
