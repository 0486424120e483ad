"""What ends the ranks when their launcher is killed: a shell that waits for the launcher's end of a pipe to close.

::

    launcher ──pipe──▶ sh     1 the ranks' process groups, one a line
                              2 the end of the pipe: SIGKILL to all of them

A launcher that ends by itself has ended its ranks, and dismisses the reaper before the pipe closes. Knows nothing
of torch's agent.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

_SCRIPT = 'while read -r group; do all="$all -$group"; done; [ -z "$all" ] || kill -s KILL -- $all'


class Reaper:
    """Watches over process groups, from `start` to `dismiss`; may be started again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, groups: Iterable[int]) -> None:
        """SIGKILL to these groups if this process ends before `dismiss`."""
        self.dismiss()
        self._process = subprocess.Popen(
            ["sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the launcher must not end it
        )
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{group}\n" for group in groups).encode())
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """End it; the groups are let alone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
