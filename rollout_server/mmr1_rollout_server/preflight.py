"""What can be known to be wrong before the engine is imported: half a minute earlier, and in one line."""

from __future__ import annotations

from mmr1.config import RunConfig
from mmr1.credentials import reward_key, rollout_tokens
from mmr1.errors import ConfigurationError
from mmr1.local.ports import Port, require_free
from mmr1.model_folder import check_folder_for, check_model
from mmr1.redis_access import RedisAccess
from mmr1.remote_images import RemoteRoot
from mmr1.reward_access import reward_tls
from mmr1_rollout_server.auth import server_credentials


def check(config: RunConfig, server_id: str, port: int, metrics_port: int) -> None:
    """Check the model, the image root, tokens, certificates, other services' addresses, and that the ports are free.

    Whether those services answer is not checked: they may start later, and come back after a failure.

    Raises:
        ConfigurationError: the first thing that is wrong, and the remedy.
    """
    folder = check_model(config.model)
    if folder is not None:
        check_folder_for(config, folder)
    root = config.resolved_image_root
    if isinstance(root, RemoteRoot):
        root.file_system()
    elif not root.is_dir():
        raise ConfigurationError(f"image_root {root} is not a folder; set image_root")
    server_credentials(config)
    rollout_tokens(config.rollout_token_file)
    RedisAccess.from_config(config).parts()
    if not config.resolved_reward_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"reward_url {config.resolved_reward_url} is not an http URL")
    reward_tls(config)
    reward_key(config.reward_key_file)
    require_free(
        [
            Port(port, config.host, "rollout_port", server_id),
            Port(metrics_port, config.host, "learner_metrics_port", f"{server_id}'s metrics"),
        ]
    )
