"""What a person reads: results on stdout, the story on stderr, as loud as was asked for.

Text from elsewhere is printed without markup, and was cleaned before.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

from manyhands.observe.logfile import DEFAULT_FILE, log_handler
from manyhands.settings import load

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_QUIET, _NORMAL, _TRACEBACKS = -1, 0, 2
_LEVELS = {_QUIET: logging.ERROR, _NORMAL: logging.WARNING, 1: logging.INFO}


class _Loudness:
    level = _NORMAL


def set_loudness(verbose: int, *, quiet: bool) -> None:
    """Take -v, -vv and -q, else the settings' level; send the library's log to stderr, and to a file if asked."""
    settings = load().monitoring
    _Loudness.level = _QUIET if quiet else min(verbose, _TRACEBACKS)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    level = _LEVELS.get(_Loudness.level, logging.DEBUG)
    if _Loudness.level == _NORMAL:
        level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logger = logging.getLogger("manyhands")
    logger.setLevel(level)
    if settings.save_logs:
        logger.addHandler(log_handler(settings.log_file or DEFAULT_FILE))


def wants_tracebacks() -> bool:
    """Whether -vv was given."""
    return _Loudness.level >= _TRACEBACKS


def is_verbose() -> bool:
    """Whether -v was given."""
    return _Loudness.level > _NORMAL


def is_quiet() -> bool:
    """Whether -q was given."""
    return _Loudness.level <= _QUIET


def tell(text: str = "", style: str | None = None) -> None:
    """One line of the story, on stderr; nothing with -q."""
    if not is_quiet():
        _console(sys.stderr).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show(what: RenderableType) -> None:
    """A result for a person, on stdout."""
    _console(sys.stdout).print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))


def show_json(value: dict[str, Any]) -> None:
    """A result for a program: one JSON object, the last line of stdout."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def complain(sentence: str) -> None:
    """What went wrong, on stderr."""
    sys.stderr.write(f"manyhands: {sentence}\n")
    sys.stderr.flush()


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream)
