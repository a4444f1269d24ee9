"""What can be known to be wrong before the engine is imported: half a minute earlier, and in one line."""

from __future__ import annotations

from redis.asyncio import Redis

from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.local.ports import Port, require_free
from mmr1.model_folder import check_folder_for, check_model


def check(config: RunConfig, server_id: str, port: int, metrics_port: int) -> None:
    """Check the model, the image root, the addresses of the other services, and that the ports are free.

    Whether those services answer is not checked: they may start later, and come back after a failure.

    Raises:
        ConfigurationError: the first thing that is wrong, and the remedy.
    """
    folder = check_model(config.model)
    if folder is not None:
        check_folder_for(config, folder)
    if not config.resolved_image_root.is_dir():
        raise ConfigurationError(f"image_root {config.resolved_image_root} is not a folder; set image_root")
    try:
        Redis.from_url(config.resolved_redis_url)
    except ValueError as error:
        raise ConfigurationError(f"redis_url: {error}") from None
    if not config.resolved_reward_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"reward_url {config.resolved_reward_url} is not an http URL")
    require_free(
        [
            Port(port, config.host, "rollout_port", server_id),
            Port(metrics_port, config.host, "learner_metrics_port", f"{server_id}'s metrics"),
        ]
    )
