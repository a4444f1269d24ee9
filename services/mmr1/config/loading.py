"""From a YAML file, the environment and a command line to one RunConfig, or to one line that says what is wrong.

Precedence: command line, then MMR1_* in the environment, then the file, then defaults.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from mmr1.config.objective import OF_OBJECTIVE
from mmr1.config.options import RunConfig
from mmr1.credentials import PASSWORD_VARIABLE, holds_password
from mmr1.errors import ConfigurationError

Config = TypeVar("Config", bound=RunConfig)

_ALIASES = {"every": "eval_every"}  # names that a file and a command line may use too


def load_config(path: Path | str | None, arguments: Sequence[str] = (), *, environment: bool = True) -> RunConfig:
    """Read, merge and validate the options of a run. Arguments and errors as `load_options`."""
    return load_options(RunConfig, path, arguments, environment=environment)


def load_options(
    kind: type[Config], path: Path | str | None, arguments: Sequence[str] = (), *, environment: bool = True
) -> Config:
    """Read, merge and validate.

    Args:
        kind: RunConfig, or a command's own kind of it.
        path: the YAML file, or None for options alone.
        arguments: `--name value` pairs that override it; list options take several values.
        environment: False for a file that says what has been, which no variable of today may change.

    Raises:
        ConfigurationError: the file, a name or a value is wrong; the message is one line with the remedy.
    """
    document = _by_own_names(_read_yaml(Path(path)), f"{path}") if path is not None else {}
    _check_names(kind, document, f"{path}")
    options = _parse_arguments(kind, arguments)
    _check_environment(kind, os.environ)
    _choose_length(options, document)

    class _Sources(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            given = InitSettingsSource(settings_cls, init_kwargs=options)
            read = InitSettingsSource(settings_cls, init_kwargs=document)
            return (given, EnvSettingsSource(settings_cls), read) if environment else (given, read)

    try:
        merged = _Sources()
        return kind.model_construct(_fields_set=merged.model_fields_set, **dict(merged))
    except ValidationError as error:
        raise ConfigurationError(_first_problem(error)) from None
    except SettingsError as error:
        raise ConfigurationError(f"environment: {error}") from None


def given_names(kind: type[Config], arguments: Sequence[str]) -> frozenset[str]:
    """Options that a command line names, by their own names."""
    return frozenset(_parse_arguments(kind, arguments))


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration, for the services that `mmr1 up` starts. A Redis URL's password is left out.

    What is only the objective's own default stands there as a comment: read with another objective, the file must not
    give it the defaults of this one.
    """
    document = config.model_dump(mode="json")
    own = {name: document.pop(name) for name in sorted(OF_OBJECTIVE - config.model_fields_set)}
    if document["redis_url"] and holds_password(document["redis_url"]):
        del document["redis_url"]  # children inherit MMR1_REDIS_URL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False) + _comment(config, own))


def _comment(config: RunConfig, own: dict[str, Any]) -> str:
    if not own:
        return ""
    values = "".join(f"#   {line}\n" for line in yaml.safe_dump(own).splitlines())
    return f"# Not given, so as objective {config.objective} has it:\n{values}"


def option_help(kind: type[RunConfig] = RunConfig) -> str:
    """One line per option: name, default, description. What only this command has comes first."""
    lines = []
    for name, field in sorted(kind.model_fields.items(), key=lambda item: item[0] in RunConfig.model_fields):
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        lines.append(f"  --{name} ({default})  {field.description or ''}".rstrip())
    return "\n".join(lines)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"configuration {path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"configuration {path} must be a mapping of option names to values")
    return document


def _by_own_names(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Options that were given by an alias, by their own names."""
    for alias, name in _ALIASES.items():
        if alias in given and name in given:
            raise ConfigurationError(f"{where}: {alias} is another name of {name}; give one of the two")
    return {_ALIASES.get(name, name): value for name, value in given.items()}


def _check_names(kind: type[RunConfig], names: dict[str, Any], where: str) -> None:
    for name in names:
        if name not in kind.model_fields:
            near = difflib.get_close_matches(str(name), kind.model_fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "; `mmr1 up --help` lists them"
            raise ConfigurationError(f"{where}: unknown option {name!r}{hint}")


def _choose_length(options: dict[str, Any], document: dict[str, Any]) -> None:
    """num_steps and num_epochs say one thing in two ways: the one from the more specific source counts."""
    neither = {"num_steps": 0, "num_epochs": None}
    if len(neither.keys() & options.keys()) == 1:
        options |= {name: value for name, value in neither.items() if name not in options}
    elif any(f"MMR1_{name}".upper() in os.environ for name in neither):
        for name in neither:
            document.pop(name, None)


def _check_environment(kind: type[RunConfig], environment: Mapping[str, str]) -> None:
    """A misspelt MMR1_<OPTION> would be ignored without a word. Other MMR1_ variables are left alone."""
    for variable in environment:
        name = variable.lower().removeprefix("mmr1_")
        if variable.upper().startswith("MMR1_") and name not in kind.model_fields:
            near = difflib.get_close_matches(_ALIASES.get(name, name), kind.model_fields, n=1, cutoff=0.85)
            if near:
                raise ConfigurationError(
                    f"environment: unknown option {variable}; did you mean MMR1_{near[0].upper()}?"
                )


def _parse_arguments(kind: type[RunConfig], arguments: Sequence[str]) -> dict[str, Any]:
    """`--name value ...` and `--name=value` to a mapping; a name without a value is a true switch."""
    options: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            options[name] = [value] if equals else []
        elif not name:
            raise ConfigurationError(f"unexpected argument {argument!r}; options are written --name value")
        else:
            options[name].append(argument)
    options = _by_own_names(options, "command line")
    _check_names(kind, dict(options), "command line")
    if any(map(holds_password, options.get("redis_url", []))):
        raise ConfigurationError(
            f"command line: --redis_url holds a password, which everybody on this machine can list; set "
            f"{PASSWORD_VARIABLE} or redis_password_file and leave it out of the URL"
        )
    return {name: _shape(kind, name, values) for name, values in options.items()}


def _shape(kind: type[RunConfig], name: str, values: list[str]) -> Any:
    is_list = "list[" in str(kind.model_fields[name].annotation)
    if is_list:
        return values[0] if len(values) == 1 else values  # one word may hold several values
    if len(values) > 1:
        raise ConfigurationError(f"command line: --{name} takes one value, got {len(values)}: {' '.join(values)}")
    if not values and kind.model_fields[name].annotation is not bool:
        raise ConfigurationError(f"command line: --{name} needs a value")
    return values[0] if values else True


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"option {where!r} is required; set it in the file or as --{where}"
    given = "" if not where or where.startswith(("redis_url", "reward_url")) else f" (given {first.get('input')!r})"
    return f"option {where!r}: {message}{given}" if where else message


__all__ = ["load_config", "load_options", "option_help", "save_config"]
