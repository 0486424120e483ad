"""The command ``manyhands``: one verb a file, errors to exit codes in ``outcome``. Loads a verb's needs late."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); its exit code."""
    from manyhands.cli.outcome import run

    return run(arguments)
