"""What a compute child takes from itself before it loads anything: priority, files, memory, and life without its agent.

The child does this, not whoever starts it: code between fork and exec is no place for Python. Each hard limit
goes down with the soft one, so nothing that runs later can raise it. Where a system lacks one, it is left out.

There is no limit on processes: RLIMIT_NPROC counts everything that this user runs, so that a browser could end a
child's threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

NICENESS = 10
MOST_FILES = 64
RANK_FILES = 8
"""More for each process that a child starts: two sockets, a memory and a pipe, and some while it starts."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def settle(cpus: Sequence[int], num_ranks: int = 1) -> None:
    """Low priority, no core dump, few files, no new privileges, and the processors named."""
    be_nice()
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, MOST_FILES + RANK_FILES * (num_ranks - 1))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if cpus:
            os.sched_setaffinity(0, cpus)


def be_nice() -> None:
    """Lower this process's priority to `NICENESS`, unless it is as low already."""
    os.nice(max(0, NICENESS - os.nice(0)))


def others_seconds() -> float | None:
    """Processor time that programs of usual priority took since the system started; None where it does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=2)
    except OSError:
        return None
    return int(fields[1]) / os.sysconf("SC_CLK_TCK")


def limit_memory(num_bytes: int) -> None:
    """Let an allocation beyond `num_bytes` fail here, before the machine has to kill something (Linux)."""
    if sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, num_bytes)


def die_with(descriptor: int) -> None:
    """End this process at once when the other end of `descriptor` is gone."""
    threading.Thread(
        target=_wait_for_the_end, args=(descriptor,), name="manyhands-orphan", daemon=True
    ).start()


def _wait_for_the_end(descriptor: int) -> None:
    watch = select.poll()
    watch.register(descriptor, 0)  # no event is asked for: POLLHUP and POLLERR come unasked
    watch.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))
