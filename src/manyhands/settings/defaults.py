"""Defaults of arguments that a setting may replace: an argument in code beats a setting, also one that says the same.

::

    def setup_dataset(self, dataset, batch_size: int = default("training.batch_size")): ...
        self.batch_size = settled(batch_size)       # 64 given in code stays 64; nothing given asks the settings

A default looks, compares and prints as its value, so that signatures read as they are documented; only its identity
tells that nobody gave it.
"""

from __future__ import annotations

from typing import Any

from manyhands.settings.model import Settings
from manyhands.settings.sources import load


class _Default:
    """What marks a value as nobody's choice."""

    key: str


class _Int(_Default, int):
    pass


class _Float(_Default, float):
    pass


class _Text(_Default, str):
    pass


class _Bool(_Default, int):
    """Of bool nobody inherits."""

    def __repr__(self) -> str:
        return repr(bool(self))


class _Nothing(_Default):
    """In place of None, of which nobody inherits."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or self is other

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return "None"


_KINDS: dict[type, type[Any]] = {bool: _Bool, int: _Int, float: _Float, str: _Text}


def value_of(settings: Settings, key: str) -> Any:
    """The value of a dotted key; KeyError where there is none."""
    value: Any = settings
    for part in key.split("."):
        if part not in type(value).model_fields:
            raise KeyError(key)
        value = getattr(value, part)
    return value


def default(key: str) -> Any:
    """The built-in value of `key`, marked."""
    value = value_of(Settings(), key)
    marked = _Nothing() if value is None else _KINDS[type(value)](value)
    marked.key = key
    return marked


def settled(given: Any) -> Any:
    """`given` as it is, or what the settings say where nothing was given. Raises UsageError for bad settings."""
    return value_of(load(split=True), given.key) if isinstance(given, _Default) else given
