"""Adapters: one function or class for each trainer that loads a reward as code and cannot be pointed at a server.

They ask `/v1/score` over HTTP and import their trainer only when they are used. Arguments, or the environment variables
MMR1_REWARD_URL and MMR1_REWARD_TASK, say where the server is and which task scores; `calls.py` and `trust.py` have the
variables for a key and for TLS. The exact lines of each trainer's configuration are at the top of its file. A failed
verdict is never a zero that nobody asked for:

| trainer | adapter | a verdict that failed |
|---|---|---|
| verl | `verl_reward`, `verl_reward_async` | raises; a number if `failed_score` is given, flagged |
| EasyR1 | `easyr1_reward` | raises; a number if `failed_score` is given, counted as a metric |
| TRL | `trl_reward(...)`, `trl_reward_async(...)` | None: left out of the sample's sum |
| ms-swift | `swift_orm(...)` | None: left out of the sample's sum |
| AReaL | `areal_reward(...)` | raises: four tries, then the rollout is given up |
| SkyRL-gym | `skyrl_environment(...)` | raises |
| NeMo-RL | `nemo_rl_environment()` | raises; a number if `failed_score` is given |
| verifiers | `verifiers_reward(...)`, `verifiers_task_reward` | raises: the rollout counts as failed |
"""

from __future__ import annotations

from .calls import RewardUnavailable
from .for_areal import areal_reward
from .for_easyr1 import easyr1_reward
from .for_nemo_rl import nemo_rl_environment
from .for_skyrl import skyrl_environment
from .for_swift import swift_orm
from .for_trl import trl_reward, trl_reward_async
from .for_verifiers import verifiers_reward, verifiers_task_reward
from .for_verl import verl_reward, verl_reward_async

__all__ = [
    "RewardUnavailable",
    "areal_reward",
    "easyr1_reward",
    "nemo_rl_environment",
    "skyrl_environment",
    "swift_orm",
    "trl_reward",
    "trl_reward_async",
    "verifiers_reward",
    "verifiers_task_reward",
    "verl_reward",
    "verl_reward_async",
]
