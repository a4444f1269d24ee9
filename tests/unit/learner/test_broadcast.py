"""Which way weights travel, and what the fingerprints that are taken on a GPU see. Tensors here are the CPU's."""

from __future__ import annotations

import pytest
import torch

from mmr1.errors import ConfigurationError
from mmr1.records import TensorSpec
from mmr1.weight_plan import digest_of_sum, word_keys, word_sums
from mmr1_learner.broadcast import choose_transport, largest_bucket

HERE = "gpu-a"


@pytest.mark.parametrize(
    ("here", "servers", "expected"),
    [
        ("cpu", {"s": ["cpu"]}, "gloo"),
        (HERE, {"s": ["cpu"]}, "gloo"),
        ("cpu", {"s": ["gpu-b"]}, "gloo"),
        (HERE, {"s": ["gpu-b"], "t": ["gpu-c"]}, "nccl"),
        (HERE, {"s": ["gpu-b", "gpu-c"]}, "nccl"),
        (HERE, {"s": [HERE]}, "ipc"),
        (HERE, {"s": [HERE], "t": [HERE]}, "ipc"),
        (HERE, {"s": [HERE], "t": ["gpu-b"]}, "gloo"),
        (HERE, {"s": ["gpu-b"], "t": ["gpu-b"]}, "gloo"),
    ],
)
def test_the_way_follows_from_where_weights_are(here: str, servers: dict[str, list[str]], expected: str) -> None:
    assert choose_transport("auto", here, servers) == expected
    assert choose_transport("gloo", here, servers) == "gloo"


@pytest.mark.parametrize(
    ("wanted", "here", "devices", "needs"),
    [
        ("nccl", HERE, [HERE], "a GPU for each worker"),
        ("nccl", "cpu", ["gpu-b"], "a GPU for each worker"),
        ("ipc", HERE, ["gpu-b"], "one GPU"),
        ("ipc", "cpu", ["cpu"], "one GPU"),
    ],
)
def test_a_way_that_these_devices_cannot_go_is_refused(wanted: str, here: str, devices: list[str], needs: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"weight_transport {wanted} needs {needs}.*leave it at auto"):
        choose_transport(wanted, here, {"10.0.0.1:5000": devices})


def test_the_largest_bucket_may_be_a_tensor_of_its_own() -> None:
    specs = [TensorSpec("a", "float32", (10,)), TensorSpec("b", "float32", (100,)), TensorSpec("c", "float32", (5,))]
    adapters = [TensorSpec("d", "bfloat16", (3,))]
    assert largest_bucket([specs, adapters], 64) == 400
    assert largest_bucket([specs, adapters], 10_000) == 460


def digests(flat: torch.Tensor, sizes: list[int]) -> list[int]:
    return [digest_of_sum(value) for value in word_sums(flat, sizes).tolist()]


def test_a_digest_is_the_sum_of_its_own_words_whatever_is_sent_beside_it() -> None:
    """By the definition, in Python's integers."""
    flat = torch.randint(0, 256, (8 * 5000,), dtype=torch.uint8)
    keys = word_keys(torch.arange(5001))
    sizes = [8 * 1200, 8 * 3000, 8 * 800]
    mask, words = (1 << 64) - 1, [value % 2**64 for value in flat.view(torch.int64).tolist()]
    mixed = [((word ^ (word >> 29)) * (key % 2**64)) & mask for word, key in zip(words, keys.tolist(), strict=False)]
    expected = [sum(mixed[:1200]) & mask, sum(mixed[1200:4200]) & mask, sum(mixed[4200:]) & mask]
    assert digests(flat, sizes) == expected


@pytest.mark.parametrize("sizes", [[64, 8, 4096], [1, 7, 8, 13, 100, 3], [0, 16, 0, 8, 0]])
def test_every_flipped_bit_changes_the_digest_of_its_tensor_and_no_other(sizes: list[int]) -> None:
    flat = torch.randint(0, 256, (sum(sizes),), dtype=torch.uint8)
    whole = digests(flat, sizes)
    assert all(0 <= digest < 2**64 for digest in whole)
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    for index, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        if not size:
            assert whole[index] == 0
            continue
        for place in {begin, begin + size // 2, begin + size - 1}:
            for bit in range(8):
                changed = flat.clone()
                changed[place] ^= 1 << bit
                found = digests(changed, sizes)
                assert [at for at in range(len(sizes)) if found[at] != whole[at]] == [index]


def test_a_word_that_is_inverted_and_zeros_that_arrive_as_ones_are_seen() -> None:
    """bfloat16's NaN is all ones: a buffer that nobody has filled may hold either."""
    flat = torch.randint(0, 256, (64,), dtype=torch.uint8)
    for begin in range(0, 64, 8):
        changed = flat.clone()
        changed[begin : begin + 8] ^= 0xFF
        assert digests(changed, [64]) != digests(flat, [64])
    assert digests(torch.zeros(24, dtype=torch.uint8), [24]) != digests(torch.full((24,), 0xFF).byte(), [24])


def test_what_random_faults_do_not_is_seen_too() -> None:
    """Sums of words are blind to exchanged ones, and to two signs that flip; this one is not."""
    numbers = torch.randn(4096, dtype=torch.float32)
    flat = numbers.view(torch.uint8)
    (whole,) = digests(flat, [flat.numel()])
    exchanged = numbers.view(2, -1).flip(0).reshape(-1)
    negated = -numbers
    two = numbers.clone()
    two[[1, 3]] *= -1  # the top bits of two words
    shifted = numbers.roll(2)
    for changed in (exchanged, negated, two, shifted):
        assert digests(changed.view(torch.uint8), [flat.numel()]) != [whole]


def test_changes_of_several_words_do_not_cancel() -> None:
    """Keys that grow evenly would be blind to both: the same change up in words 0 and 3, and down in 1 and 2."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    assert digests((-signs).view(torch.uint8), [32]) != digests(signs.view(torch.uint8), [32])
    words = torch.tensor([5, 5, 5, 5])
    shifted = words + torch.tensor([1, -1, -1, 1])
    assert digests(shifted.view(torch.uint8), [32]) != digests(words.view(torch.uint8), [32])
