"""The checkpoint folders of one run: how they are named, put into place, ordered and cleared away.

`step-N` is a checkpoint, `.tmp-step-N-PID` one being written, `.old-step-N-PID` one being replaced by another
of the same step. Knows names only, nothing of what is inside.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from manyhands.store.files import storage, sync

_STEP = re.compile(r"step-(\d{1,18})")
_ASIDE = re.compile(r"\.(tmp|old)-step-(\d{1,18})-(\d{1,9})")


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / f"step-{step}"


def aside(run: Path, step: int) -> Path:
    """Where this process writes it first."""
    return run / f".tmp-step-{step}-{os.getpid()}"


def step_of(path: Path) -> int | None:
    """The step of a folder named `step-N`, None for any other name."""
    found = _STEP.fullmatch(path.name)
    return int(found.group(1)) if found else None


def put(written: Path, target: Path) -> None:
    """Rename into place, flushed.

    A checkpoint of the same step is moved to `.old-...` first, where `newest_first` finds it, so that there
    is a whole one at any moment.
    """
    replaced = target.with_name(f".old-{target.name}-{os.getpid()}")
    if target.exists():
        target.rename(replaced)
    written.rename(target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def newest_first(run: Path) -> list[Path]:
    """Folders that may hold a whole checkpoint, by step; one being replaced comes after its successor."""
    if not run.is_dir():
        return []
    with storage(run, "list"):
        entries = list(run.iterdir())
    found = [(step, 1, path) for path in entries if (step := step_of(path)) is not None]
    found += [(int(match[2]), 0, path) for path in entries if (match := _match(path, "old"))]
    return [path for _, _, path in sorted(found, reverse=True)]


def remove_leftovers(run: Path) -> None:
    """Clear what crashed writers left; never what another live process writes right now."""
    for path in run.iterdir():
        match = _match(path, "tmp")
        if match and not _alive(int(match[3])):
            shutil.rmtree(path, ignore_errors=True)


def remove_later(run: Path, step: int) -> None:
    """Clear checkpoints of later steps: going on from an earlier one voided their history."""
    for path in run.iterdir():
        number = step_of(path)
        if number is not None and number > step:
            shutil.rmtree(path, ignore_errors=True)


def remove_earlier(run: Path, keep: int) -> None:
    """Clear all but the newest `keep`, and whatever was replaced."""
    entries = list(run.iterdir())
    found = sorted((step, path) for path in entries if (step := step_of(path)) is not None)
    replaced = [path for path in entries if _match(path, "old")]
    for path in [path for _, path in found[:-keep]] + replaced:
        shutil.rmtree(path, ignore_errors=True)


def _match(path: Path, kind: str) -> re.Match[str] | None:
    match = _ASIDE.fullmatch(path.name)
    return match if match and match[1] == kind else None


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
