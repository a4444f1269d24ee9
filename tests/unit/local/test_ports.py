"""A run's own ports, as they are when nobody moves them."""

from __future__ import annotations

from pathlib import Path

from mmr1.config import load_config
from mmr1.local.ports import ports_of

LOWEST_OF_LINUX = 32768  # net.ipv4.ip_local_port_range, unless somebody has set it


def test_no_port_is_one_that_the_kernel_gives_to_whoever_asks_for_any(tmp_path: Path) -> None:
    """A worker of vLLM asks for such ports; it must not be given the one that the next server is about to take."""
    required = ["--model", "m", "--train_file", "t.json", "--num_steps", "3", "--per_device_batch_size", "8"]
    config = load_config(None, [*required, "--rollout_replicas", "64", "--run_dir", str(tmp_path)])
    ports = ports_of(config)
    assert len({port.number for port in ports}) == len(ports) > 128
    assert max(port.number for port in ports) < LOWEST_OF_LINUX
