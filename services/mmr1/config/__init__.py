"""RunConfig: the one validated configuration, from YAML, environment and command line."""

from mmr1.config.loading import load_config, save_config
from mmr1.config.options import RunConfig

__all__ = ["RunConfig", "load_config", "save_config"]
