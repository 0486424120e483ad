"""Memory, processors, and the folders that a run writes to."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manyhands.diagnosis.finding import Figures, Finding, bad, ok, warn
from manyhands.observe.rates import format_bytes
from manyhands.store.filesystem import filesystem, is_network

LITTLE_MEMORY_BYTES = 1 << 30
"""torch alone takes some 300 MiB of it."""
LITTLE_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes; `limit` is this process's container's, None where there is none."""

    total: int
    available: int
    limit: int | None

    @property
    def usable(self) -> int:
        """What a new process may still take."""
        return self.available if self.limit is None else min(self.available, self.limit)


def read_memory() -> Memory:
    """The memory of this machine; what is available is all of it where the system does not tell (macOS)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        available = int(found[1]) * 1024 if found else total
    return Memory(total, available, _container_bytes())


def _container_bytes() -> int | None:
    """What is left of a container's limit (cgroup v2)."""
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    return None


def judge_memory(memory: Memory, cores: int) -> Finding:
    """Whether torch and a small model fit."""
    inside = "" if memory.limit is None else f", {format_bytes(memory.limit)} left of this container's limit"
    found = (
        f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}{inside}, {cores} processors"
    )
    figures: Figures = {"total": memory.total, "usable": memory.usable, "cores": cores}
    if memory.usable < LITTLE_MEMORY_BYTES:
        return warn(
            "memory",
            found,
            "torch takes some 300 MiB before any model: close something, or lend another machine",
            **figures,
        )
    return ok("memory", found, **figures)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Folder:
    """A folder that may not exist yet, and the disk below it. `stands` is its nearest part that exists."""

    path: Path
    stands: Path
    is_writable: bool
    free_bytes: int
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether another machine may write there too."""
        return is_network(self.kind)


def read_folder(path: Path) -> Folder:
    """What is known about a folder without making it."""
    path = path.expanduser().absolute()
    stands = next(part for part in (path, *path.parents) if part.exists())
    is_writable = stands.is_dir() and os.access(stands, os.W_OK | os.X_OK)
    return Folder(path, stands, is_writable, shutil.disk_usage(stands).free, filesystem(stands))


def judge_state(folder: Folder) -> Finding:
    """Keys and invites lie here: small, private, locked."""
    if finding := _unusable("state folder", folder, "MANYHANDS_STATE_DIR=/another/path"):
        return finding
    found = f"{folder.path}: {format_bytes(folder.free_bytes)} free ({folder.kind})"
    if folder.is_network:
        return warn(
            "state folder",
            found,
            "keys on a network file system may be read elsewhere, and their locks may not hold: set "
            "MANYHANDS_STATE_DIR to a local disk",
            **_figures(folder),
        )
    return ok("state folder", found, **_figures(folder))


def judge_checkpoints(folder: Folder) -> Finding:
    """Weights and the journal lie here; only a coordinator writes them."""
    if finding := _unusable("checkpoints", folder, "CentralServer(checkpoint_dir=...)"):
        return finding
    found = f"{folder.path}: {format_bytes(folder.free_bytes)} free ({folder.kind})"
    if folder.is_network:
        return warn(
            "checkpoints",
            found,
            "on a network file system the journal has no write-ahead log: commits are slower, nothing is less safe; "
            "checkpoint_dir= on a local disk is faster",
            **_figures(folder),
        )
    if folder.free_bytes < LITTLE_DISK_BYTES:
        return warn(
            "checkpoints",
            found,
            "a checkpoint holds the weights and the optimizer's state, and four may exist at once: make room, or give "
            "CentralServer another checkpoint_dir",
            **_figures(folder),
        )
    return ok("checkpoints", found, **_figures(folder))


def _unusable(topic: str, folder: Folder, instead: str) -> Finding | None:
    if folder.is_writable:
        return None
    return bad(
        topic,
        f"{folder.path}: {folder.stands} is not yours to write to",
        f"use another: {instead}",
        **_figures(folder),
    )


def _figures(folder: Folder) -> Figures:
    return {"path": str(folder.path), "free": folder.free_bytes, "filesystem": folder.kind}
