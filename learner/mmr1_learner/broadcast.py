"""Tensors through a collective, bucket by bucket, each with its fingerprint; and which collective carries them.

A bucket is put together where the collective wants it: in the host's memory, or on the GPU, where its fingerprints are
taken too. Knows no versions and no servers but the devices that they name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmr1.errors import ConfigurationError
from mmr1.records import TensorSpec
from mmr1.weight_plan import buckets, digest_of_sum, fingerprint, tensor_bytes, word_sums
from mmr1_learner.collective import Meeting

CPU = "cpu"  # what a server without a GPU calls the place where its weights are


def send_tensors(
    collective: Meeting,
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, Tensor],
    bucket_bytes: int,
    made: torch.cuda.Event | None = None,
) -> tuple[dict[str, int], int]:
    """Returns the fingerprint of each tensor, and how many bytes were sent. On a GPU they are as they are at `made`.

    Raises:
        WeightUpdateError: a receiver was lost, or the time was over.
    """
    sent: dict[str, int] = {}
    aside = Sums(collective.device) if collective.device.type != CPU else None
    num_bytes = 0
    with collective.sending(made):
        for bucket in buckets(specs, bucket_bytes):
            parts = [_bytes_of(tensors[spec.name], collective.device) for spec in bucket]
            flat = torch.cat(parts)
            if aside is not None:
                aside.add(flat, [part.numel() for part in parts])
            else:
                sent |= {spec.name: fingerprint(part.numpy().data) for spec, part in zip(bucket, parts, strict=True)}
            num_bytes += flat.numel()
            collective.send(flat)
        collective.finish()
    if aside is not None:
        sent = dict(zip((spec.name for spec in specs), aside.digests(), strict=True))
    return sent, num_bytes


class Sums:
    """The fingerprints of buckets on a GPU, taken on a stream of their own while the buckets are on their way."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._sums: list[Tensor] = []

    def add(self, flat: Tensor, sizes: Sequence[int]) -> None:
        """Of a bucket that the current stream has put together."""
        self._stream.wait_stream(torch.cuda.current_stream(flat.device))
        with torch.cuda.stream(self._stream):
            self._sums.append(word_sums(flat, sizes))
        flat.record_stream(self._stream)  # its memory is not used again before

    def digests(self) -> Iterator[int]:
        """Of every tensor so far, in order. Waits for the device."""
        with torch.cuda.stream(self._stream):
            sums = torch.cat(self._sums).tolist() if self._sums else []
        return map(digest_of_sum, sums)


def largest_bucket(manifests: Sequence[Sequence[TensorSpec]], bucket_bytes: int) -> int:
    """Bytes of the largest broadcast of these manifests."""
    return max(sum(map(tensor_bytes, bucket)) for specs in manifests for bucket in buckets(specs, bucket_bytes))


def choose_transport(wanted: str, here: str, servers: Mapping[str, Sequence[str]]) -> str:
    """How weights travel from the GPU `here` (or CPU) to the devices of each server, by its address.

    Over NCCL where every worker has a GPU of its own, through a buffer where all of them use the learner's, and over
    gloo, which needs no GPU, otherwise.

    Raises:
        ConfigurationError: `wanted` is none of what these devices can do.
    """
    devices = [device for each in servers.values() for device in each]
    on_gpus = here != CPU and CPU not in devices
    possible = {
        "gloo": True,
        "nccl": on_gpus and len({here, *devices}) == 1 + len(devices),
        "ipc": on_gpus and set(devices) == {here},
    }
    if wanted == "auto":
        return next(transport for transport in ("nccl", "ipc", "gloo") if possible[transport])
    if possible[wanted]:
        return wanted
    where = "; ".join(f"{address}: {', '.join(each)}" for address, each in servers.items())
    needs = "a GPU for each worker and one more for the learner" if wanted == "nccl" else "one GPU that all use"
    raise ConfigurationError(
        f"weight_transport {wanted} needs {needs}, and the learner is on {here}, servers on {where}; leave it at auto"
    )


def name_of(device: torch.device) -> str:
    """What a server on the same GPU calls it: the card's own number, whatever it is called in this process."""
    return CPU if device.type == CPU else str(torch.cuda.get_device_properties(device).uuid)


def _bytes_of(tensor: Tensor, device: torch.device) -> Tensor:
    # To a GPU the copy may be under way: what reads it comes later on the stream. In the host's memory nothing waits.
    return tensor.detach().to(device, non_blocking=device.type != CPU).contiguous().view(-1).view(torch.uint8)
