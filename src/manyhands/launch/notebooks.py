"""A function of a notebook on many processes: `notebook(fn, nproc)`.

::

    notebook ──cloudpickle──▶ fn.pkl ──▶ each rank: python -m manyhands.launch.cell ──▶ result-RANK.pkl ──▶ back

The ranks are new processes, never forks of the notebook's: it does not matter whether CUDA or autograd was used
before. Pickle stays between processes of one user on one machine; nothing comes from a network.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manyhands.errors import RunFailed, UsageError
from manyhands.launch.blame import describe, judge
from manyhands.launch.launcher import Site, run_here
from manyhands.launch.options import parse
from manyhands.launch.plan import INTERRUPTED
from manyhands.launch.telling import Console

CELL = "manyhands.launch.cell"


def notebook(fn: Callable[..., Any], nproc: int | str | None = None, *arguments: Any) -> list[Any]:
    """Run ``fn(*arguments)`` on `nproc` ranks (default: as `manyhands launch`); what each returned, by rank.

    In `fn`, `manyhands.launch.session()` is that rank's. What ranks print appears here, tagged. RunFailed with the
    traceback of the rank that failed first; KeyboardInterrupt, with all ranks gone, where the cell is interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="manyhands-notebook-") as folder:
        work = Path(folder)
        (work / "fn.pkl").write_bytes(_pickled(fn, arguments))
        words = [] if nproc is None else ["--nproc", str(nproc)]
        console = Console(sys.stdout, sys.stderr)
        with _import_path():
            code = run_here(parse([*words, "-m", CELL, folder]), Site(), console)
        console.close()
        if console.failures:
            raise RunFailed(describe(judge(console.failures)).removeprefix("manyhands: ").rstrip())
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise RunFailed(f"the ranks ended with exit code {code}")
        results = sorted(work.glob("result-*.pkl"), key=lambda path: int(path.stem.rpartition("-")[2]))
        return [pickle.loads(path.read_bytes()) for path in results]  # noqa: S301 - written by our own ranks


def _pickled(fn: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """By value, so that a function of a cell, and what it uses of other cells, travels."""
    if importlib.util.find_spec("cloudpickle") is None:
        raise UsageError(
            'a function of a notebook travels by cloudpickle, which is not installed: pip install "manyhands[notebook]"'
        )
    import cloudpickle  # type: ignore[import-untyped]

    try:
        content: bytes = cloudpickle.dumps((fn, arguments))
    except (pickle.PicklingError, TypeError) as error:
        raise UsageError(
            f"{getattr(fn, '__name__', fn)!s} uses something that cannot be sent to another process ({error}): "
            "open files, locks and connections must be made inside the function"
        ) from None
    return content


@contextmanager
def _import_path() -> Iterator[None]:
    """Let the ranks import what the notebook can: modules beside it, and what it has put on `sys.path`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(folder or ".").resolve()) for folder in sys.path)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
