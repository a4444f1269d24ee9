"""The server's options: one schema gives the command line, its help and its checks. It opens and starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn, Self

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
    max_items: int = Field(1024, gt=0, description="of one request; more are refused (413)")
    max_response_chars: int = Field(100_000, gt=0, description="a longer response is invalid_output")
    item_deadline_seconds: float = Field(5.0, gt=0, description="to score one item; then its outcome is timeout")
    num_threads: int = Field(2, gt=0, description="batches scored at the same time")
    max_pending_items: int = Field(
        16_384, gt=0, description="scored and waiting at once; beyond it, 503 with Retry-After"
    )
    max_stuck_threads: int = Field(
        16, gt=0, description="scorers past their deadline; at this many, the server is not ready"
    )
    drain_seconds: float = Field(30.0, gt=0, description="on SIGTERM, how long requests in progress may take")
    access_log: bool = Field(False, description="one log line for each request")

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_pending_items < self.max_items:
            raise ValueError(
                f"max_pending_items ({self.max_pending_items}) is below max_items ({self.max_items}): "
                "the largest request could never be taken; raise the one or lower the other"
            )
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
        if field.annotation is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=field.default, help=field.description
            )
        else:
            parser.add_argument(
                option, default=field.default, metavar=name.rpartition("_")[2].upper(), help=field.description
            )
    try:
        return Settings.model_validate(vars(parser.parse_args(argv)))
    except ValidationError as error:
        raise SettingsError(_as_option(first_problem(error))) from None


def _as_option(problem: str) -> str:
    """`max_items: must be ...` -> `--max-items: must be ...`"""
    name, colon, rest = problem.partition(": ")
    return f"--{name.replace('_', '-')}: {rest}" if colon and name in Settings.model_fields else problem
