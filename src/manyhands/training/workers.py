"""Worker processes that make samples: whether a program can have them, and that they end when it does.

Spawned, never forked: gRPC and torch have threads. A worker imports the main script again, so where that would
start the run a second time (no ``if __name__ == "__main__"``) or cannot be done (a notebook), workers are threads.
Knows nothing of what a worker makes.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
import threading
from multiprocessing import connection
from pathlib import Path

import torch


def begin_worker() -> None:
    """In a new worker process: one thread of torch's, and an end when the parent was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A worker whose parent was killed hears nothing of it while it is busy."""
    connection.wait([sentinel])
    os._exit(1)


def why_not_processes() -> str | None:
    """Why this program's workers must be threads; None where they can be processes."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None:
        return "num_workers are threads here: an interactive session cannot be imported by a worker process"
    if getattr(main, "__spec__", None) is None and not _is_guarded(Path(path)):
        return (
            f'num_workers are threads here: {Path(path).name} has no `if __name__ == "__main__":`, so that a worker '
            "process would start the run again"
        )
    return None


def _is_guarded(script: Path) -> bool:
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    tests = [node.test for node in tree.body if isinstance(node, ast.If)]
    return any(
        isinstance(name, ast.Name) and name.id == "__name__" for test in tests for name in ast.walk(test)
    )
