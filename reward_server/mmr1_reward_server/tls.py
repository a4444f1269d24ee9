"""TLS: the files are read once before the server starts, so that a wrong one is a named error and not a traceback.

Serving with them is uvicorn's business.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from .settings import Settings, SettingsError

# For TLS 1.2; those of 1.3 are OpenSSL's own. Named here, because uvicorn's default lets in CBC with SHA-1.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"


def tls_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn's Config is given; empty without TLS. Raises SettingsError that names the option."""
    if settings.tls_cert is None or settings.tls_key is None:
        return {}
    for option, file in (
        ("--tls-cert", settings.tls_cert),
        ("--tls-key", settings.tls_key),
        ("--tls-client-ca", settings.tls_client_ca),
    ):
        if file is not None:
            _check_readable(option, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise SettingsError(
            f"--tls-cert {settings.tls_cert}, --tls-key {settings.tls_key}: {reason}; "
            "give a certificate chain and its key, both PEM, the key without a password"
        ) from None
    options: dict[str, Any] = {
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        "ssl_ciphers": _CIPHERS,
    }
    if settings.tls_client_ca is not None:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError as error:
            raise SettingsError(f"--tls-client-ca {settings.tls_client_ca}: {error.reason}; give PEM") from None
        options |= {"ssl_ca_certs": settings.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _check_readable(option: str, file: str) -> None:
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{option} {file} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    """Without this OpenSSL would ask for one on the terminal."""
    raise ValueError("the key has a password")
