"""``manyhands launch``: the same script on every core and every machine, with torchrun's options.

The options are those of torchrun's own parser and ours beside them, so this verb takes its words as they are. A
command line that begins with ``launch`` does not even come here (see `cli.main`).
"""

from __future__ import annotations

from typing import Any, Final

import typer

ALL_WORDS: Final[dict[str, Any]] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


def launch(context: typer.Context) -> int:
    """Start a script on every core or machine, with torchrun's options."""
    from manyhands.cli.launching import run

    return run(context.args)
