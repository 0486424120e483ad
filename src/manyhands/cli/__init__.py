"""The command ``manyhands``: one verb a file, errors to exit codes in ``outcome``. Loads a verb's needs late."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["launch"]:
        from manyhands.cli.launching import run as run_launch
        from manyhands.launch.starting import start

        return start(given[1:], run_launch)
    from manyhands.cli.outcome import run

    return run(given)
