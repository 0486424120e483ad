"""What the library logs, in a file too: for whoever asked for it by the settings, while something goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from manyhands.errors import StorageError

DEFAULT_FILE = "manyhands.log"


def log_handler(path: str) -> logging.Handler:
    """A handler that appends to `path`; StorageError where it cannot."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the log cannot be written to {path}: {error.strerror}", path) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


@contextmanager
def logging_to(path: str | None, level: str) -> Iterator[None]:
    """Write what `manyhands.*` logs to `path` too, from info on, or from debug where `level` says so; None: nothing."""
    if path is None:
        yield
        return
    logger, handler = logging.getLogger("manyhands"), log_handler(path)
    before = logger.level
    wanted = logging.DEBUG if level == "debug" else logging.INFO
    logger.setLevel(min(wanted, logger.getEffectiveLevel()))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
