"""Nouns survive the wire, and a message of another schema version is refused with both versions named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmr1.records import Outcome, Score, TensorSpec
from mmr1.weight_plan import buckets, fingerprint, tensor_bytes
from mmr1.wire import SchemaVersionError, check_schema, decode_group, decode_prompt, encode_group, encode_prompt
from mmr1.wire.v1 import records_pb2
from tests.conftest import make_group, make_prompt


def test_a_prompt_and_a_group_come_back_as_they_went() -> None:
    prompt = make_prompt(position=7, attempt=2)
    assert decode_prompt(encode_prompt(prompt)) == prompt
    group = make_group(prompt, rewards=(1.0, None, 0.0))
    assert decode_group(encode_group(group)) == group
    read = {"detection": [{"bbox_2d": [1.5, 2.0, 3.0, 4.0], "label": "7"}], "counting": 3}
    score = Score(Outcome.OK, 1.0, {"detection": 1.0, "counting": 1.0}, "", read)
    told = replace(group, rollouts=(replace(group.rollouts[0], score=score),))
    assert decode_group(encode_group(told)) == told
    assert group.rollouts[1].score is not None and group.rollouts[1].score.reward is None


def test_another_schema_version_is_refused_with_both_named() -> None:
    message = records_pb2.Prompt.FromString(encode_prompt(make_prompt()))
    message.schema_version = 9
    with pytest.raises(SchemaVersionError, match=r"schema version 9, this build speaks 1 to 1"):
        decode_prompt(message.SerializeToString())
    with pytest.raises(SchemaVersionError):
        check_schema(0, "a message that names none")


def test_buckets_keep_the_order_and_the_bound() -> None:
    tensors = [TensorSpec(f"t{i}", "float32", (size,)) for i, size in enumerate((10, 10, 100, 5, 5))]
    cut = list(buckets(tensors, 80))
    assert [[spec.name for spec in bucket] for bucket in cut] == [["t0", "t1"], ["t2"], ["t3", "t4"]]
    assert sum(tensor_bytes(spec) for bucket in cut for spec in bucket) == 520


def test_a_fingerprint_sees_one_changed_byte() -> None:
    data = bytearray(1000)
    before = fingerprint(memoryview(data))
    data[500] = 1
    assert fingerprint(memoryview(data)) != before
