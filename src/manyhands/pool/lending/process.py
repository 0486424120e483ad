"""The agent's handle on one compute child: spawned with nothing of the agent's, and ended with a reason.

The child inherits no environment but a short list, no descriptor but its channel and its log, no argument but its
order; its folder is empty and its own. It is spawned, never forked into: gRPC's threads live here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec

from manyhands.observe.text import clean_line
from manyhands.pool.lending.channel import open_pair
from manyhands.pool.lending.words import FROM_CHILD, Order
from manyhands.settings.children import bare_environment

_LINE_BYTES = 2000
_LAST_LINES = 20
_MEANINGS = {
    signal.SIGKILL: "by hand, or by the system for want of memory",
    signal.SIGSEGV: "a bad memory access",
    signal.SIGBUS: "a bad memory access",
    signal.SIGABRT: "it gave up itself",
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGFPE: "an arithmetic fault",
}


class ComputeProcess:
    """One child; `start` it on a thread that lasts, since Linux ends it with the thread that it came from.

    Its folder lies in `parent` (None: where the system has such). With patience, whoever sends it something hears
    that it takes nothing (`channel.Stuck`).
    """

    def __init__(
        self,
        order: Order,
        environment: Mapping[str, str] | None = None,
        parent: Path | None = None,
        patience_seconds: int | None = None,
    ) -> None:
        self._order = order
        self._parent = parent
        self._patience_seconds = patience_seconds
        self._environment = dict(environment or {})
        self._reason: str | None = None
        self._is_paused = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def start(self) -> None:
        """Spawn it; it loads torch meanwhile."""
        self._folder = tempfile.TemporaryDirectory(prefix="manyhands-lent-", dir=self._parent)
        self.channel, descriptors = open_pair(FROM_CHILD, self._patience_seconds)
        order = msgspec.structs.replace(self._order, descriptors=descriptors)
        try:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "manyhands.pool.lending.child",
                    msgspec.json.encode(order).decode(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env=bare_environment(self._environment),
                cwd=self._folder.name,
                start_new_session=True,  # Ctrl-C is the agent's: it hands the lease back first
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._reader = threading.Thread(target=self._read_log, name="manyhands-child-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def is_stopped(self) -> bool:
        """Whether its owner paused it (SIGSTOP); False where the system does not tell."""
        try:
            text = Path(f"/proc/{self._child.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] in "Tt"

    def pause(self, is_paused: bool) -> None:
        """Stop it where it is (SIGSTOP), or let it go on (SIGCONT); from any thread."""
        if self._is_paused != is_paused:
            self._is_paused = is_paused
            self._child.send_signal(signal.SIGSTOP if is_paused else signal.SIGCONT)

    def kill(self, reason: str | None = None) -> None:
        """End it at once, from any thread; `reason` is what `sentence` will say."""
        self._reason = self._reason or reason
        self._child.kill()
        self.channel.close()

    def close(self) -> None:
        """Kill it where it still runs, and leave nothing of it."""
        self.kill()
        self._child.wait()
        self._reader.join()
        self.channel.release()
        self._folder.cleanup()

    def sentence(self) -> str:
        """How it ended, for a person; waits for its end."""
        code = self._child.wait()
        self._reader.join()
        if self._reason is not None:
            return f"the compute process was stopped by its watchdog: {self._reason}"
        if code >= 0:
            said = f": {self._lines[-1]}" if self._lines else ""
            return f"the compute process ended by itself (exit code {code}){said}"
        number = signal.Signals(-code)
        return f"the compute process was killed by {number.name} ({_MEANINGS.get(number, 'a signal from outside')})"

    def _read_log(self) -> None:
        """Keep the end of what it prints, whatever it prints."""
        assert self._child.stdout is not None
        with self._child.stdout as pipe:
            while line := pipe.readline(_LINE_BYTES):
                if text := clean_line(line.decode(errors="replace")).strip():
                    self._lines.append(text)
