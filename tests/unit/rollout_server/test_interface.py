"""Weights are exchanged on the way to the learner and on no other network."""

from __future__ import annotations

import pytest

from mmr1_rollout_server.interface import address_towards


def test_what_goes_to_this_machine_stays_on_it() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"


def test_a_host_without_an_address_is_an_error() -> None:
    with pytest.raises(OSError):
        address_towards("no-such-host.invalid")
