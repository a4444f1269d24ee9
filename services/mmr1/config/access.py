"""Options of who may talk to whom: where Redis is, and the tokens, passwords and certificates of a run's connections.

Paths and rules only. The files are read by `mmr1.credentials` and `mmr1.tls`, each by the process that needs it, so no
secret is ever part of a configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

PAIRS = (
    ("redis_tls_cert", "redis_tls_key"),
    ("rollout_tls_cert", "rollout_tls_key"),
    ("rollout_client_cert", "rollout_client_key"),
    ("reward_client_cert", "reward_client_key"),
)
# Each of the first is without effect where the second is not set.
NEEDS = (
    ("rollout_tls_cert", "rollout_tls_ca", "whoever calls the rollout servers must know which certificates to trust"),
    ("rollout_tls_client_ca", "rollout_tls_cert", "without TLS there are no certificates of callers"),
    ("rollout_tls_client_ca", "rollout_client_cert", "the learner must have a certificate to show"),
    ("rollout_client_cert", "rollout_tls_ca", "without TLS there is nobody to show a certificate to"),
    ("rollout_tls_name", "rollout_tls_ca", "without TLS there are no names to check"),
)


class AccessOptions(BaseModel):
    redis_url: str | None = Field(
        None,
        description="an existing Redis, rediss:// for TLS, with the user where it has one: redis://USER@HOST:PORT/0; "
        "default: `mmr1 up` starts its own. Passwords belong in redis_password_file or MMR1_REDIS_PASSWORD",
    )
    redis_password_file: Path | None = Field(
        None, description="a file with the password of redis_url's user; MMR1_REDIS_PASSWORD instead holds it itself"
    )
    redis_tls_ca: Path | None = Field(
        None, description="CA (PEM) of the Redis server's certificate; default: the system's"
    )
    redis_tls_cert: Path | None = Field(None, description="certificate (PEM) to show to Redis, where it asks for one")
    redis_tls_key: Path | None = Field(None, description="its key (PEM)")
    rollout_token_file: Path | None = Field(
        None,
        description="tokens that rollout servers let in, one a line, and callers show the first; MMR1_ROLLOUT_TOKEN "
        "instead holds one itself; default: `mmr1 up` makes one for its own stack",
    )
    rollout_tls_cert: Path | None = Field(
        None, description="certificate chain (PEM) of the rollout servers: they speak TLS, and nothing else"
    )
    rollout_tls_key: Path | None = Field(None, description="its key (PEM)")
    rollout_tls_ca: Path | None = Field(
        None, description="CA (PEM) of the rollout servers' certificates: callers speak TLS, and nothing else"
    )
    rollout_tls_name: str | None = Field(
        None, description="the name in those certificates, where it is not the address that callers use"
    )
    rollout_tls_client_ca: Path | None = Field(
        None, description="CA (PEM) that must have signed each caller's certificate"
    )
    rollout_client_cert: Path | None = Field(
        None, description="certificate chain (PEM) of the rollout servers' callers"
    )
    rollout_client_key: Path | None = Field(None, description="its key (PEM)")
    reward_key_file: Path | None = Field(
        None,
        description="a file with the key that the reward server asks for; MMR1_REWARD_API_KEY instead holds it itself",
    )
    reward_tls_ca: Path | None = Field(
        None, description="CA (PEM) of the certificate of an https reward_url; default: the system's"
    )
    reward_client_cert: Path | None = Field(
        None, description="certificate chain (PEM) to show to the reward server, where it asks for one"
    )
    reward_client_key: Path | None = Field(None, description="its key (PEM)")

    @model_validator(mode="after")
    def _access_is_whole(self) -> Self:
        for pair in PAIRS:
            given = [name for name in pair if getattr(self, name) is not None]
            if len(given) == 1:
                raise ValueError(f"{' and '.join(pair)} belong together; only {given[0]} is given")
        for name, needed, why in NEEDS:
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name} needs {needed}: {why}")
        if (self.redis_tls_ca or self.redis_tls_cert) and not (self.redis_url or "").startswith("rediss://"):
            raise ValueError("redis_tls_ca and redis_tls_cert need a redis_url that begins with rediss://")
        return self
