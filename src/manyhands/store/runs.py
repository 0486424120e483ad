"""The folders of a checkpoint directory: one a run, never used twice.

::

    checkpoints/run-0001/journal.sqlite
                        /step-200/ step-400/ step-600/     (see `checkpoint`)
                        /latest                            "step-600"

Knows names and dates of files, not what is in them.
"""

from __future__ import annotations

import re
from pathlib import Path

from manyhands.errors import UsageError
from manyhands.store.files import storage, sync
from manyhands.store.steps import step_of

JOURNAL = "journal.sqlite"
LATEST = "latest"
_NUMBERED = re.compile(r"run-(\d+)")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def runs(checkpoint_dir: Path) -> list[str]:
    """Names of the runs in a checkpoint directory, the one last written to at the end."""
    with storage(checkpoint_dir, "list"):
        if not checkpoint_dir.is_dir():
            return []
        found = [folder for folder in checkpoint_dir.iterdir() if folder.is_dir() and _is_run(folder)]
        return [folder.name for folder in sorted(found, key=lambda run: (_last_written(run), run.name))]


def latest_run(checkpoint_dir: Path) -> str | None:
    """The run that was last written to, None if there is none."""
    return next(reversed(runs(checkpoint_dir)), None)


def new_run(checkpoint_dir: Path) -> str:
    """Make the folder of a new run and return its name: `run-0001`, `run-0002`, ...

    Two coordinators that ask at once get two names.
    """
    with storage(checkpoint_dir, "create a run in"):
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        number = 1 + max(
            (int(m.group(1)) for m in map(_NUMBERED.fullmatch, _names(checkpoint_dir)) if m), default=0
        )
        while True:
            name = f"run-{number:04d}"
            try:
                (checkpoint_dir / name).mkdir()
            except FileExistsError:
                number += 1
                continue
            sync(checkpoint_dir)
            return name


def run_folder(checkpoint_dir: Path, run: str) -> Path:
    """The folder of a run; raises `UsageError` for a name that could leave the directory."""
    if not _SAFE_NAME.fullmatch(run):
        raise UsageError(
            f"{run!r} is no name of a run: use up to 64 letters, digits, dots, dashes, underscores"
        )
    return checkpoint_dir / run


def _names(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir()]


def _is_run(folder: Path) -> bool:
    if not _SAFE_NAME.fullmatch(folder.name):
        return False
    if _NUMBERED.fullmatch(folder.name) or (folder / LATEST).exists() or (folder / JOURNAL).exists():
        return True
    return any(step_of(child) is not None for child in folder.iterdir())


def _last_written(folder: Path) -> int:
    """Nanoseconds; a run that has a checkpoint is dated by its newest, else by its own folder."""
    latest = folder / LATEST
    return (latest if latest.exists() else folder).stat().st_mtime_ns
