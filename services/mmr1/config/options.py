"""Every option of a run: its name, default, bounds and help text. One flat namespace, grouped by what it governs.

Two groups have files of their own: `objective.py`, what the loss is made of, and `optimizer.py`, how it is minimised.
This file holds facts about single options and about how they fit together. It opens no file and checks no machine:
`mmr1.preflight` does that.
"""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mmr1.config.access import AccessOptions
from mmr1.config.forms import GivenForms
from mmr1.config.objective import ObjectiveOptions
from mmr1.config.optimizer import OptimizerOptions
from mmr1.credentials import check_reward_url
from mmr1.reading.files import dataset_folder
from mmr1.remote_images import RemoteRoot, checked_root, default_cache


class ModelOptions(BaseModel):
    model: str = Field(description="a Hugging Face folder or hub name of a vision-language model")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of sampler and learner alike")
    min_pixels: int | None = Field(None, gt=0, description="Qwen-VL: images are enlarged to this many pixels at least")
    max_pixels: int | None = Field(None, gt=0, description="Qwen-VL: images are shrunk to this many pixels at most")
    coordinates: Literal["auto", "absolute", "normalized_1000", "normalized_1"] = Field(
        "auto",
        description="in what the model says boxes; auto: as its family does, if that is known; absolute: pixels of the "
        "image as a Qwen-VL resizes it, of the original with other families",
    )


class DataOptions(BaseModel):
    train_file: Path = Field(
        description="rows of {problem, solution, image}: JSON, JSON Lines, Parquet, Arrow, or a Hugging Face split"
    )
    eval_file: Path | None = Field(None, description="held-out problems, in any of these formats")
    image_root: Annotated[Path | str, BeforeValidator(checked_root)] | None = Field(
        None,
        description="images outside it are refused; a folder, or a URL (s3://bucket/images, any that fsspec opens); "
        "default: image_dir, else the dataset's own folder",
    )
    image_dir: Path | None = Field(
        None, description="where relative image paths begin; default: image_root, else the dataset's own folder"
    )
    image_checks: int = Field(
        10_000, ge=0, description="rows whose images are decoded before the run, spread over the file"
    )
    image_cache: Path | None = Field(
        None, description="where images of a URL are kept; default: mmr1/images in XDG_CACHE_HOME or ~/.cache"
    )
    image_cache_gib: float = Field(10.0, gt=0, description="of them are kept, those that were read last")
    problem_key: str = Field("problem", description="the row's key of the question")
    answer_key: str = Field("solution", description="the row's key of the solution")
    image_key: str = Field("image", description="the row's key of the image path or paths")
    task: str = Field("counting", description="the task of rows that have no `task` of their own")
    task_weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], NoDecode] = Field(
        default_factory=dict, description="the share of prompts by task, {TASK: WEIGHT ...}; default: as the rows are"
    )
    train_sample_size: int | None = Field(None, gt=0, description="the first N problems after the seeded shuffle")
    system_prompt_template: str = Field("default", description="a registered name or module:attribute")
    question_template: str = Field("default", description="a registered name or module:attribute")
    answer_template: str = Field(
        "default", description="a registered name or module:attribute; what a warm start is trained to say"
    )


class SamplingOptions(BaseModel):
    num_generations: int = Field(8, ge=2, description="G: completions per prompt")
    temperature_func: Literal["constant", "linear"] = Field(
        "constant", description="how the temperature moves over the run"
    )
    temperature: float = Field(1.0, gt=0, description="constant: of sampling and of the loss")
    temperature_begin: float = Field(1.0, gt=0, description="linear: at the first step")
    temperature_end: float = Field(1.0, gt=0, description="linear: at the last step")
    top_p: float = Field(1.0, gt=0, le=1.0, description="sampling; parity is exact at 1")
    max_prompt_length: int = Field(1024, gt=0, description="tokens, image tokens included")
    max_completion_length: int = Field(64, gt=0, description="tokens")
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], NoDecode] = Field(
        default_factory=list, description="strings that end a completion"
    )

    def temperature_at(self, step: int, num_steps: int) -> float:
        """The sampling temperature of optimizer step `step` (from 0) of `num_steps`."""
        if self.temperature_func == "constant":
            return self.temperature
        progress = min(1.0, step / max(1, num_steps - 1))
        return self.temperature_begin + (self.temperature_end - self.temperature_begin) * progress


class RolloutOptions(BaseModel):
    rollout_replicas: int = Field(1, gt=0, description="rollout servers on this machine")
    rollout_tensor_parallel_size: int = Field(1, gt=0, description="GPUs that each rollout server cuts the model over")
    rollout_threads: int = Field(
        1, gt=0, description="CPU threads of a rollout server: its engine's; on a GPU, those that prepare images"
    )
    max_off_policy_steps: int = Field(
        1, ge=0, description="groups older than this many updates are dropped and fed again"
    )
    max_concurrent_prompts: int = Field(16, gt=0, description="prompts a rollout server holds at once")
    max_num_seqs: int = Field(128, gt=0, description="completions the engine runs at once")
    gpu_memory_utilization: float = Field(0.8, gt=0, le=1, description="CUDA only")
    kv_cache_gib: int = Field(1, gt=0, description="CPU only")
    claim_idle_seconds: float = Field(
        60.0, gt=0, description="a silent holder's prompts are claimed by others after this"
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="a rollout server that does not renew for this long takes no prompts"
    )
    max_deliveries: int = Field(3, gt=0, description="crashes of its holder after which a prompt is dead")
    pause_deadline_seconds: float = Field(
        120.0, gt=0, description="for running generations to end before a weight update"
    )
    weight_update_deadline_seconds: float = Field(120.0, gt=0, description="of each phase")
    weight_bucket_bytes: int = Field(256 * 2**20, gt=0, description="of one broadcast in a weight update")
    weight_transport: Literal["auto", "gloo", "nccl", "ipc"] = Field(
        "auto",
        description="how weights travel; auto: nccl from GPU to GPU, ipc on one GPU that all share, else gloo",
    )
    reward_deadline_seconds: float = Field(30.0, gt=0, description="of one scoring call, retries included")


class ParityOptions(BaseModel):
    parity_prompts: int = Field(16, gt=0, description="prompts scored on both sides before the first step")
    parity_bound: float | None = Field(
        None,
        gt=0,
        description="mean |delta log p|; default 1e-3 in float32; in bfloat16 10 times the gate's gap, 1e-2 to 5e-2",
    )

    def bound(self, dtype: str) -> float:
        return self.parity_bound or {"float32": 1e-3, "bfloat16": 5e-2}[dtype]


class EvaluationOptions(BaseModel):
    eval_at_start: bool = Field(True, description="measure the held-out problems before the first step")
    eval_at_end: bool = Field(True, description="measure the held-out problems after the last step")
    eval_every: int = Field(
        0, ge=0, description="(also: every) optimizer steps between evaluations; 0 = only start and end"
    )
    eval_sample_size: int | None = Field(
        None, gt=0, description="draw N held-out problems by `seed`, always the same, in each task's share; default all"
    )

    def evaluates_within(self, step: int, num_steps: int) -> bool:
        """Whether `step` steps of `num_steps` are one of the places between start and end where a run is measured."""
        return self.eval_every > 0 and 0 < step < num_steps and step % self.eval_every == 0


class RecordOptions(BaseModel):
    trackers: Annotated[list[Literal["tensorboard", "wandb"]], NoDecode] = Field(
        default_factory=list, description="where metrics go besides the run's own JSONL files"
    )
    dump_steps: Annotated[list[Annotated[int, Field(gt=0)]], NoDecode] = Field(
        default_factory=list, description="steps, from 1, to keep for `mmr1 replay`; one that is not finite always is"
    )
    proof: bool = Field(
        False, description="write which groups each optimizer step trained on to proof.jsonl, on disk before the next"
    )


class StackOptions(BaseModel):
    run: str = Field(
        "run", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="the run's name: Redis keys and log lines carry it"
    )
    run_dir: Path = Field(Path("runs/run"), description="logs, checkpoints, metrics and results")
    host: str = Field("127.0.0.1", description="the address services listen on: IPv4, or a name")
    advertise_host: str | None = Field(
        None,
        description="where others reach this host, in a cluster: address or name; default: host, or this machine's "
        "name when that is 0.0.0.0",
    )
    redis_port: int = Field(6390, ge=0, le=65535, description="of the Redis that `mmr1 up` starts")
    reward_url: str | None = Field(
        None,
        description="an existing reward server, without user and password: its key is in reward_key_file or "
        "MMR1_REWARD_API_KEY; default: `mmr1 up` starts its own",
    )
    reward_port: int = Field(8390, ge=1, le=65535, description="of the reward server that `mmr1 up` starts")
    rollout_port: int = Field(7390, ge=1, le=65535, description="of the first rollout server; the others follow")
    learner_metrics_port: int = Field(
        9390, ge=1, le=65535, description="Prometheus; rollout servers follow from the next port on"
    )
    learner_master_port: int = Field(29390, ge=1, le=65535, description="where learner ranks meet")
    max_restarts: int = Field(5, ge=0, description="restarts of a service; ten minutes up start the count anew")

    @field_validator("host", "advertise_host")
    @classmethod
    def _no_ipv6(cls, value: str | None) -> str | None:
        if value and ":" in value:
            raise ValueError("IPv6 addresses are not supported yet; give an IPv4 address or a name that has one")
        return value

    @field_validator("reward_url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        check_reward_url(value or "")
        return value

    @property
    def reachable_host(self) -> str:
        """Where others reach what this process listens on."""
        return self.advertise_host or (socket.gethostname() if self.host == "0.0.0.0" else self.host)

    @property
    def resolved_reward_url(self) -> str:
        return self.reward_url or f"http://{self.host}:{self.reward_port}"


class RunConfig(
    AccessOptions,
    StackOptions,
    RecordOptions,
    EvaluationOptions,
    ParityOptions,
    RolloutOptions,
    OptimizerOptions,
    ObjectiveOptions,
    SamplingOptions,
    DataOptions,
    ModelOptions,
    GivenForms,
    BaseSettings,
):
    """All options of a run. Unknown keys are errors; relative paths are relative to the working directory."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="MMR1_", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("model")
    @classmethod
    def _home(cls, value: str) -> str:
        return str(Path(value).expanduser()) if value.startswith("~") else value

    @property
    def resolved_redis_url(self) -> str:
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def prompts_per_step(self) -> int:
        return self.generations_per_step // self.num_generations

    @property
    def resolved_image_root(self) -> Path | RemoteRoot:
        if isinstance(self.image_root, str):
            return RemoteRoot(self.image_root, self.image_cache or default_cache(), int(self.image_cache_gib * 2**30))
        return self.image_root or self.image_dir or dataset_folder(self.train_file)

    @property
    def resolved_overlong_buffer(self) -> int:
        return self.overlong_buffer or max(1, self.max_completion_length // 5)

    @model_validator(mode="after")
    def _batch_divides(self) -> RunConfig:
        self._require_division()
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> RunConfig:
        if not self.num_steps and self.num_epochs is None:
            raise ValueError("num_steps or num_epochs is required; set one of them in the file or as an option")
        if self.num_steps and self.num_epochs is not None:
            raise ValueError(
                f"num_steps {self.num_steps} and num_epochs {self.num_epochs:g} are both given; leave one of them out, "
                "or set num_steps to 0"
            )
        return self

    def for_world_size(self, world_size: int) -> RunConfig:
        """The same run on as many learner ranks as really are there.

        Raises:
            ValueError: their generations per step are no multiple of num_generations; one line with the remedy.
        """
        resized = self.model_copy(update={"learner_processes": world_size})
        resized._require_division()
        return resized

    def _require_division(self) -> None:
        total, group = self.generations_per_step, self.num_generations
        if total % group:
            rest = self.learner_processes * self.gradient_accumulation_steps
            valid = [n for n in range(1, self.per_device_batch_size + group + 1) if n * rest % group == 0]
            nearest = sorted(sorted(valid, key=lambda n: abs(n - self.per_device_batch_size))[:2])
            raise ValueError(
                f"per_device_batch_size does not divide: {self.learner_processes} learner processes x "
                f"per_device_batch_size {self.per_device_batch_size} x gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} = {total} generations, not a multiple of num_generations {group}; "
                f"nearest valid per_device_batch_size: {', '.join(map(str, nearest))}"
            )

    @model_validator(mode="after")
    def _reference_can_move(self) -> RunConfig:
        if self.ref_sync_steps and not self.kl:
            raise ValueError(
                "ref_sync_steps moves the reference, and kl is empty: there is none; set kl or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _schedules(self) -> RunConfig:
        if self.temperature_func == "linear" and self.temperature_begin > self.temperature_end:
            raise ValueError("temperature_begin is above temperature_end; swap them or use temperature_func constant")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.resolved_overlong_buffer > self.max_completion_length:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} is above max_completion_length {self.max_completion_length}; "
                "lower it, or leave it out: a fifth of that length"
            )
        if self.top_p != 1.0:
            raise ValueError(f"top_p {self.top_p}: the learner scores the whole distribution; only 1.0 is exact today")
        if self.task_weights and not any(self.task_weights.values()):
            raise ValueError("task_weights are all 0; give one task at least a weight above 0")
        if not self.rewards:
            raise ValueError("rewards is empty; name at least one task of the reward server, as NAME or NAME=WEIGHT")
        for spec in self.rewards:
            name, _, weight = spec.partition("=")
            try:
                finite = math.isfinite(float(weight or "1"))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"rewards: {spec!r} is not NAME or NAME=WEIGHT")
            if not name:
                raise ValueError(f"rewards: {spec!r} has no name")
        return self
