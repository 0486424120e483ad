"""What the kernel says of a process: processor time, memory, threads, descriptors (Linux)."""

from __future__ import annotations

import os
from pathlib import Path


def processor_seconds(pid: int | None) -> float:
    """User and system time of all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(pid: int | None) -> int:
    """Resident memory without shared file pages: what the process itself keeps."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0])


def threads(pid: int | None) -> int:
    """Its threads."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors(pid: int | None) -> int:
    """Its open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
