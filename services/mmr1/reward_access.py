"""How a run's services reach its reward server: the one place that knows of the key and of TLS. It asks nothing."""

from __future__ import annotations

import ssl

from mmr1.config import RunConfig
from mmr1.credentials import REWARD_KEY_VARIABLE, reward_key
from mmr1.errors import ConfigurationError
from mmr1.tls import files
from mmr1_reward_server.client import RewardClient

KEY_REMEDY = f"set {REWARD_KEY_VARIABLE}, or reward_key_file, to one of the reward server's keys"


def reward_client(config: RunConfig, deadline_seconds: float) -> RewardClient:
    """A client that shows the run's key, if there is one.

    Raises:
        ValueError: `reward_url` is no URL.
        ConfigurationError: the key, a certificate or a key of TLS is not what its option asks for.
    """
    key = reward_key(config.reward_key_file)
    return RewardClient(config.resolved_reward_url, deadline_seconds, api_key=key, verify=reward_tls(config))


def reward_tls(config: RunConfig) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`; True: the system's CAs, and no certificate of our own.

    Raises:
        ConfigurationError: a file is not what its option asks for, or `reward_url` is not https.
    """
    if config.reward_tls_ca is None and config.reward_client_cert is None:
        return True
    if not config.resolved_reward_url.startswith("https://"):
        raise ConfigurationError("reward_tls_ca and reward_client_cert need a reward_url that begins with https://")
    return files(
        ca=("reward_tls_ca", config.reward_tls_ca),
        certificate=("reward_client_cert", config.reward_client_cert),
        key=("reward_client_key", config.reward_client_key),
    ).context()
