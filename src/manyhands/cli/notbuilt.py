"""Verbs that are promised and not built yet: each is refused by name, with what to use instead."""

from __future__ import annotations

from typing import Any, Final

import typer

from manyhands.errors import UsageError

INSTEAD: Final[dict[str, str]] = {}
ANY_ARGUMENTS: Final[dict[str, Any]] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


def refuse(context: typer.Context) -> None:
    """Say what to use instead; exit code 2."""
    name = context.info_name or ""
    raise UsageError(f"`manyhands {name}` is not built yet: {INSTEAD[name]}")
