"""The server's options: one schema gives the command line, its help and its checks. It opens and starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import __version__
from .api import first_problem

PROGRAM = "mmr1-reward-server"


class SettingsError(Exception):
    """An option that the user must change. One line that names it and the remedy."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one and logs which")
    max_body_bytes: int = Field(32 * 2**20, gt=0, description="larger requests are refused (413)")
    max_json_values: int = Field(
        2**21, gt=0, description="in one body: numbers, texts, keys, lists, objects; more are refused (413)"
    )
    max_items: int = Field(1024, gt=0, description="of one request; more are refused (413)")
    max_response_chars: int = Field(100_000, gt=0, description="a longer response is invalid_output")
    item_deadline_seconds: float = Field(5.0, gt=0, description="to score one item; then its outcome is timeout")
    workers: int = Field(2, gt=0, le=256, description="processes that score; one item at a time each")
    reward: tuple[str, ...] = Field((), description="module:function, a reward of your own; may be repeated")
    default_task: str | None = Field(None, description="for peers' requests that name none; else accuracy")
    correct_from: float = Field(
        0.5, allow_inf_nan=False, description="smallest reward that PipelineRL is told to be correct"
    )
    max_pending_items: int = Field(
        16_384, gt=0, description="scored and waiting at once; beyond it, 503 with Retry-After"
    )
    max_pending_bytes: int = Field(
        256 * 2**20, gt=0, description="of the bodies of all requests in progress; beyond it, 503 with Retry-After"
    )
    body_seconds: float = Field(
        60.0,
        gt=0,
        description="for a request's body to arrive, then 408; for its head; and without progress while its answer is "
        "taken",
    )
    drain_seconds: float = Field(30.0, gt=0, description="on SIGTERM, how long requests in progress may take")
    api_key_file: str | None = Field(None, description="API keys, one a line; see also MMR1_REWARD_API_KEY")
    tls_cert: str | None = Field(None, description="certificate chain (PEM): serves https")
    tls_key: str | None = Field(None, description="its key (PEM)")
    tls_client_ca: str | None = Field(None, description="CA (PEM) that must have signed each client's certificate")
    access_log: bool = Field(False, description="one log line for each request")
    list_tasks: bool = Field(False, description="print the names of the tasks, one a line, and end")
    describe_tasks: bool = Field(False, description="print what GET /v1/tasks answers, and end")
    explain: str | None = Field(
        None, description="a file with one item as JSON (- for standard input): print how it is scored, and end"
    )
    refusals: bool = Field(
        False,
        description="for each line of standard input, a JSON array of items, print which can never be scored and why, "
        "and end",
    )

    @property
    def answers_once(self) -> bool:
        """Whether the program is asked something and ends, and serves nothing."""
        return self.list_tasks or self.describe_tasks or self.refusals or self.explain is not None

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        for pending, one in (("max_pending_items", "max_items"), ("max_pending_bytes", "max_body_bytes")):
            if getattr(self, pending) < getattr(self, one):
                raise ValueError(
                    f"{pending} ({getattr(self, pending)}) is below {one} ({getattr(self, one)}): "
                    "the largest request could never be taken; raise the one or lower the other"
                )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both, or neither to serve http")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key: http has no client certificates")
        return self


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; `{PROGRAM} --help` lists the options")


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """The command line as Settings. Raises SettingsError; `--help` and `--version` print and exit."""
    parser = _Parser(
        prog=PROGRAM,
        description="Scores the responses of vision-language models over HTTP.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    for name, field in Settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        options: dict[str, Any] = {"default": field.default, "help": field.description}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = name.rpartition("_")[2].upper()
            options["action"] = "append" if name == "reward" else "store"
        if not field.default:  # the help would say "(default: None)"
            options["default"] = argparse.SUPPRESS
        parser.add_argument(option, **options)
    try:
        return Settings.model_validate(vars(parser.parse_args(argv)))
    except ValidationError as error:
        raise SettingsError(_as_option(first_problem(error))) from None


def _as_option(problem: str) -> str:
    """`max_items: must be ...` -> `--max-items: must be ...`"""
    name, colon, rest = problem.partition(": ")
    return f"--{name.replace('_', '-')}: {rest}" if colon and name in Settings.model_fields else problem
