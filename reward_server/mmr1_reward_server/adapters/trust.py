"""TLS of the adapters, from the environment: whom to trust, and what to show. It knows no request and no client.

MMR1_REWARD_CA is a file of CA certificates (PEM), trusted instead of the usual authorities. MMR1_REWARD_CLIENT_CERT is
the certificate chain to show to a server with `--tls-client-ca`, MMR1_REWARD_CLIENT_KEY its key if that is not in the
same file. Variables and no arguments, as for the key: each process of a trainer finds them on its own machine.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

import httpx

CA, CERT, KEY = "MMR1_REWARD_CA", "MMR1_REWARD_CLIENT_CERT", "MMR1_REWARD_CLIENT_KEY"


@dataclass(frozen=True)
class Trust:
    """The three files; None where a variable is not set or empty."""

    ca: str | None
    cert: str | None
    key: str | None

    def context(self) -> ssl.SSLContext | bool:
        """What a client is given as `verify`. Raises ValueError that names the variable."""
        if self.ca is None and self.cert is None and self.key is None:
            return True
        if self.cert is None and self.key is not None:
            raise ValueError(f"{KEY} needs {CERT}: a key alone shows nothing")
        for name, file in ((CA, self.ca), (CERT, self.cert), (KEY, self.key)):
            if file is not None:
                _check_readable(name, file)
        context = self._trusting()
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=_no_password)
            except (ssl.SSLError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise ValueError(
                    f"{CERT} {self.cert}, {KEY} {self.key}: {reason}; give PEM without a password"
                ) from None
        return context

    def _trusting(self) -> ssl.SSLContext:
        if self.ca is None:
            return httpx.create_ssl_context(trust_env=False)
        try:
            return ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise ValueError(f"{CA} {self.ca}: {error.reason}; give certificates, PEM") from None


def from_environment() -> Trust:
    return Trust(*(os.environ.get(name) or None for name in (CA, CERT, KEY)))


def _check_readable(name: str, file: str) -> None:
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name} {file} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    """Without this OpenSSL would ask for one on the terminal."""
    raise ValueError("the key has a password")
