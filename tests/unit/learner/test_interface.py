"""Ranks on several machines say words over the interface that leads to rank 0, wherever the machine's name leads."""

from __future__ import annotations

import socket

import psutil
import pytest

from mmr1_learner.ranks import interface_towards

OWN = [
    (name, one.address)
    for name, addresses in psutil.net_if_addrs().items()
    for one in addresses
    if one.family == socket.AF_INET and not one.address.startswith("127.")
]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "no such host"])
def test_one_machine_needs_none(host: str) -> None:
    assert interface_towards(host) is None


@pytest.mark.skipif(not OWN, reason="this machine has its loopback alone")
def test_it_is_the_one_with_the_address() -> None:
    name, address = OWN[0]
    assert interface_towards(address) == name
