"""Where settings come from: environment > .env > config.yaml > defaults, and which one won.

pydantic-settings reads the three sources; each stays a layer of its own, so that an error names the file and
the key, and `explain` can say where a value came from. This module and `paths` alone read the environment.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, YamlConfigSettingsSource

from manyhands.errors import UsageError
from manyhands.settings.model import SHORT_VARIABLES, SPLIT_VARIABLES, Settings

PREFIX = "MANYHANDS_"
CONFIG_FILE, ENV_FILE = "config.yaml", ".env"
DEFAULT, ENVIRONMENT, ARGUMENT = "default", "environment", "argument"
_OTHER_VARIABLES = ("STATE_DIR",)


@dataclass(frozen=True)
class Explained:
    """One key, its value as text (secrets masked), and where it came from."""

    key: str
    value: str
    source: str


class _Reader(Settings, BaseSettings):  # type: ignore[misc]
    """The settings' shape, for pydantic-settings' readers; never built itself."""


def load(
    folder: Path | None = None, arguments: Mapping[str, object] | None = None, *, split: bool = False
) -> Settings:
    """The settings in force, with `config.yaml` and `.env` of `folder` (default: the current one).

    `arguments` are values given in code, by dotted key (`"network.timeout"`); they beat every source. `split` also
    takes split mode's short variables (``BATCH_SIZE``). Raises `UsageError` naming the source, the key and the
    nearest known one.
    """
    return _build(_layers(folder or Path.cwd(), arguments or {}, split=split))


def explain(
    folder: Path | None = None, arguments: Mapping[str, object] | None = None, *, split: bool = False
) -> list[Explained]:
    """Every key with its value and its source, in the order of the sections."""
    layers = _layers(folder or Path.cwd(), arguments or {}, split=split)
    settings = _build(layers)
    return [Explained(key, _text(value), _origin(key, layers)) for key, value in _values(settings)]


def known_keys() -> list[str]:
    """Every dotted key there is, in the order of the sections."""
    return [key for key, _ in _values(Settings())]


def _values(settings: Settings) -> Iterator[tuple[str, object]]:
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{key}", item) for key, item in value)
        else:
            yield name, value


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return "********"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


Layer = tuple[str, dict[str, object]]


def _layers(folder: Path, arguments: Mapping[str, object], *, split: bool) -> list[Layer]:
    """(source, {dotted key: raw value}) from the weakest to the strongest, each with known keys only."""
    layers = [
        (CONFIG_FILE, _from_yaml(folder / CONFIG_FILE)),
        *_short(ENV_FILE, _names_in(folder / ENV_FILE), split=split),
        (ENV_FILE, _from_env_file(folder / ENV_FILE)),
        *_short(ENVIRONMENT, os.environ, split=split),
        (ENVIRONMENT, _from_environment()),
        (ARGUMENT, dict(arguments)),
    ]
    for source, values in layers:
        for key in values:
            if key not in known_keys():
                raise UsageError(f"{source}: there is no setting {key!r}{nearest(key, known_keys())}")
    return layers


def _build(layers: list[Layer]) -> Settings:
    merged: dict[str, Any] = {}
    for _, values in layers:
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (merged.setdefault(section, {}) if section else merged)[name] = value
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"][:2])
        raise UsageError(f"{_origin(key, layers)}: {key}: {problem['msg']}") from None


def _origin(key: str, layers: list[Layer]) -> str:
    return next((source for source, values in reversed(layers) if key in values), DEFAULT)


def _from_yaml(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = YamlConfigSettingsSource(_Reader, yaml_file=path)()
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: not a file of sections with keys: {error}") from None
    if "invite" in content:
        raise UsageError(f"{path}: an invite is a secret; set MANYHANDS_INVITE or use manyhands join @FILE")
    flat = _flat(content, str(path))
    if flat.get("colab.ngrok_auth_token"):
        raise UsageError(
            f"{path}: colab.ngrok_auth_token is a secret; set NGROK_AUTH_TOKEN, or put it into .env"
        )
    return flat


def _from_env_file(path: Path) -> dict[str, object]:
    names = _names_in(path)
    if not names:
        return {}
    _check_variables(str(path), names, strict=True)
    source = DotEnvSettingsSource(
        _Reader, env_file=path, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )
    fields = {key: value for key, value in source().items() if key in Settings.model_fields}
    return _flat(fields, str(path))


def _names_in(path: Path) -> Mapping[str, str | None]:
    if not path.is_file():
        return {}
    try:
        return dotenv_values(path)
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _short(source: str, names: Mapping[str, str | None], *, split: bool) -> list[Layer]:
    """A layer for each short variable that is set, named after it; an empty one sets nothing."""
    variables = {**SHORT_VARIABLES, **(SPLIT_VARIABLES if split else {})}
    return [(f"{source} ({name})", {key: names[name]}) for name, key in variables.items() if names.get(name)]


def _from_environment() -> dict[str, object]:
    _check_variables(ENVIRONMENT, os.environ, strict=False)
    source = EnvSettingsSource(_Reader, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True)
    return _flat(source(), ENVIRONMENT)


def _flat(content: Mapping[str, Any], source: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    sections = _sections()
    for name, value in content.items():
        if name not in sections:
            flat[str(name)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        elif value is not None:
            raise UsageError(f"{source}: {name} is a section of keys, not a value")
    return flat


def _sections() -> list[str]:
    return [name for name, value in Settings() if isinstance(value, BaseModel)]


def _check_variables(source: str, names: Mapping[str, object], *, strict: bool) -> None:
    """Refuse our variables that reach nothing.

    Outside a file of ours (`strict`) only those that look like a key or like a slip of the pen: the
    environment may hold variables of a later version.
    """
    known = [key.upper().replace(".", "__") for key in known_keys()] + list(_OTHER_VARIABLES)
    for name in names:
        rest = name.upper().removeprefix(PREFIX)
        if rest == name.upper() or rest in known:
            continue
        if rest.lower() in _sections():
            raise UsageError(f"{source}: {name} is a section; set {name}__KEY")
        near = nearest(rest, known, PREFIX)
        if strict or "__" in rest or near:
            raise UsageError(f"{source}: {name} sets nothing{near}")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """`; did you mean ...?` where a known name is like this one, else nothing."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not found and "." in name:
        last = name.rpartition(".")[2]
        found = [key for key in known if key.rpartition(".")[2] == last][:1]
    return f"; did you mean {prefix}{found[0]}?" if found else ""
