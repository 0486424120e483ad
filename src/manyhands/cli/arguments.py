"""Invites out of the process list: what is given as an argument, `ps` shows to every user of the machine.

A line that was pasted as an argument has been read by then; its token is overwritten where the kernel looks
for the command line (Linux: proc_pid_stat(5), `arg_start` and `arg_end`). Elsewhere this does nothing, and
`@FILE` or MANYHANDS_INVITE keep a line off the command line altogether.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_TOKEN = re.compile(rb"(?<=mh://)[^@\0]+")
_ARG_START, _ARG_END = 48, 49  # fields, counted from 1


def hide_invites() -> None:
    """Put asterisks over each token in this process's own command line; `sys.argv` stays as it is."""
    start, end = _where()
    if not 0 < start < end:
        return
    shown = ctypes.string_at(start, end - start)
    hidden = _TOKEN.sub(lambda found: b"*" * len(found[0]), shown)
    if hidden != shown:
        ctypes.memmove(start, hidden, len(hidden))


def _where() -> tuple[int, int]:
    """The addresses between which the command line lies; zeros where the kernel does not tell."""
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:
        return 0, 0
    # The second field is the program's name in parentheses, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
