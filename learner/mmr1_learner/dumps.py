"""A step set aside so that it can be run again: one that is not finite, and those that `dump_steps` names.

A dump holds what one rank computed one optimizer update from: the plan, the parameters before it, the reference's,
lp_old where it is not the update's own, the random state and the configuration, and the loss of each group as it was
found. Tensors are whole, in safetensors; the rest is JSON and YAML: nothing is pickled. Where several ranks dump a
step, the first of them has the model, which is the same for all. Images are not copied; the plan names them by path and
hash. `mmr1 replay` reads it. This file computes no loss.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmr1.config import RunConfig, save_config
from mmr1.errors import ConfigurationError
from mmr1.weight_plan import cut
from mmr1_learner.model import Policy
from mmr1_learner.plan import StepPlan
from mmr1_learner.whole import bytes_of, gathered

FORMAT = 1
AS_ASKED = "as asked"
PLAN, CONFIG, DOCUMENT = "plan.bin", "config.yaml", "dump.json"
PARAMETERS, REFERENCE, STATE = "parameters", "reference", "state.safetensors"
_FILE_BYTES = 2**30
NOT_WRITTEN = (OSError, SafetensorError)  # what a full disk raises


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update of a step, as one rank meets it."""

    index: int  # of the step's updates, from 0
    old_logprobs: tuple[Tensor, ...] | None  # lp_old of each forward's tokens [N]; None: the forward's own
    random_state: Mapping[str, Tensor]  # of the generators before the first forward


@dataclass(frozen=True, slots=True)
class Found:
    """What an update came to."""

    reason: str  # why it was set aside
    losses: dict[str, float]  # by prompt id; groups that were not reached are missing
    offending: tuple[str, ...] = ()  # prompt ids whose loss is not finite
    loss: float = math.nan  # of the forwards that were run, this rank's share
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump, read. `parameters` and `reference` stay on disk until they are asked for."""

    folder: Path
    plan: StepPlan
    update: Update
    found: Found
    rank: int
    world_size: int
    model: str | None  # the folder beside this one in which the tensors lie; None: in this one
    versions: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Tensor] | None:
        """By name; None where the run could not keep them (see `checkpoint` in dump.json)."""
        return _load(self._model_folder(), PARAMETERS)

    def reference(self) -> dict[str, Tensor] | None:
        """By name; None where it is the policy with its adapters switched off, or there is none."""
        return _load(self._model_folder(), REFERENCE)

    def _model_folder(self) -> Path:
        if self.model is None:
            return self.folder
        beside = self.folder.absolute().parent / self.model
        if not beside.is_dir():
            raise ConfigurationError(
                f"{self.folder}: its parameters lie in the dump {self.model} of another rank, which is not beside it; "
                "copy that dump there"
            )
        return beside


def folder_of(config: RunConfig, step: int, rank: int) -> Path:
    """Where a dump of step `step`, from 1, lies: a later one of the same step takes its place."""
    return config.run_dir / "dumps" / f"step-{step:06d}-rank-{rank}"


def write_inputs(config: RunConfig, plan: StepPlan, update: Update, rank: int) -> Path:
    """What must be written before the parameters move, but for tensors. Returns the folder, which has no name yet.

    Raises:
        OSError, SafetensorError: the disk does not take it.
    """
    folder = folder_of(config, plan.step + 1, rank)
    aside = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / PLAN).write_bytes(plan.encode())
    save_config(config, aside / CONFIG)
    state = dict(update.random_state)
    state.update({f"old.{turn:06d}": values for turn, values in enumerate(update.old_logprobs or ())})
    _save(state, aside / STATE)
    return aside


def write_model(model: Policy, kind: str, aside: Path | None) -> None:
    """Its whole parameters, in files of a GiB. Where ZeRO-3 has cut them all ranks call it; one without `aside` helps.

    Raises:
        OSError, SafetensorError: the disk does not take them. Only at the end: the others gather to the last tensor.
    """
    failure: Exception | None = None
    sized = [(bytes_of(parameter), (name, parameter)) for name, parameter in model.named_parameters()]
    for number, bucket in enumerate(cut(sized, _FILE_BYTES)):
        with gathered([parameter for _, parameter in bucket]):
            if aside is None or failure is not None:
                continue
            try:
                _save({name: parameter.data for name, parameter in bucket}, aside / f"{kind}-{number:05d}.safetensors")
            except NOT_WRITTEN as error:
                failure = error
    if failure is not None:
        raise failure


def finish(
    aside: Path, config: RunConfig, update: Update, found: Found, rank: int, world_size: int, writer: int
) -> Path:
    """Write down what came of it, and give the dump its name. `writer` is the rank whose dump holds the model."""
    import deepspeed
    import transformers

    folder = aside.with_name(aside.name.removesuffix(".writing"))
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
    }
    document = {
        "format": FORMAT,
        "reason": found.reason,
        "offending": list(found.offending),
        "loss": _text(found.loss),
        "losses": {name: _text(value) for name, value in found.losses.items()},
        "grad_norm": None if found.grad_norm is None else _text(found.grad_norm),
        "update": update.index,
        "rank": rank,
        "world_size": world_size,
        "model": None if writer == rank else f"{folder.name.rpartition('-')[0]}-{writer}",
        "checkpoint": _newest_checkpoint(config),
        "versions": versions,
    }
    (aside / DOCUMENT).write_text(json.dumps(document, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return folder


def read_dump(folder: Path) -> Dump:
    """Read a dump's folder.

    Raises:
        ConfigurationError: it is none, is not whole, or is of another format.
    """
    try:
        document = json.loads((folder / DOCUMENT).read_text())
        if document["format"] != FORMAT:
            raise ConfigurationError(
                f"{folder} is a dump of format {document['format']}, not {FORMAT}; replay it there"
            )
        plan = StepPlan.decode((folder / PLAN).read_bytes())
        state = load_file(folder / STATE)
        norm = document["grad_norm"]
        found = Found(
            reason=document["reason"],
            losses={name: float(value) for name, value in document["losses"].items()},
            offending=tuple(document["offending"]),
            loss=float(document["loss"]),
            grad_norm=None if norm is None else float(norm),
        )
        update = _update(document["update"], state)
        rank, world_size, model = document["rank"], document["world_size"], document.get("model")
        return Dump(folder, plan, update, found, rank, world_size, model, document["versions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{folder} is not a whole dump of a step ({type(error).__name__}: {error}); give a folder of RUN_DIR/dumps"
        ) from None


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that a forward may draw from."""
    state = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"], device)


def _update(index: int, state: dict[str, Tensor]) -> Update:
    old: Sequence[Tensor] = [state[name] for name in sorted(state) if name.startswith("old.")]
    return Update(index, tuple(old) or None, {name: t for name, t in state.items() if name.startswith("rng.")})


def _newest_checkpoint(config: RunConfig) -> str | None:
    """Where parameters come from that a dump does not hold."""
    found = sorted((config.run_dir / "checkpoints").glob("step-??????"))
    return str(found[-1]) if found else None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load(folder: Path, kind: str) -> dict[str, Tensor] | None:
    files = sorted(folder.glob(f"{kind}*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()} if files else None


def _text(value: float) -> str:
    """As Python writes it: every bit comes back, and NaN and infinity have a form, which JSON lacks."""
    return repr(float(value))


__all__ = ["AS_ASKED", "Dump", "Found", "Update", "finish", "random_state", "read_dump", "restore_random_state"]
