"""How the services of a run reach its reward server: one place that knows of the key. It asks nothing itself."""

from __future__ import annotations

import os

from mmr1_reward_server.client import RewardClient

KEY_VARIABLE = "MMR1_REWARD_API_KEY"  # the server reads the same one; keys belong neither in files of a run nor in argv


def reward_client(url: str, deadline_seconds: float) -> RewardClient:
    """A client that shows the environment's key, if there is one. Raises ValueError for a `url` that is none."""
    return RewardClient(url, deadline_seconds, api_key=os.environ.get(KEY_VARIABLE))
