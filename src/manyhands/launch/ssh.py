"""One machine of `--hosts` as its conductor sees it: an ssh process, what is said to it and what comes out of it.

Decides nothing: events, and the end of the connection (None), go into a queue that all machines share.
"""

from __future__ import annotations

import queue
import shlex
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from manyhands.errors import ManyhandsError, RunFailed, Unreachable, UsageError
from manyhands.launch.plan import Host
from manyhands.launch.remote import read_event

_SSH = "ssh"
_SSH_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10")
_SSH_FAILED = 255
_LAST_WORDS = 8

Said = tuple["Remote", dict[str, Any] | None]


class Remote:
    """One machine: its ssh process, and threads that put what comes out of it into the queue `said`.

    `ssh` is the command that reaches it, `python` the one with manyhands there; `code` its exit code, once it has one.
    """

    def __init__(
        self, host: Host, node_rank: int, ssh: str, python: str, said: queue.SimpleQueue[Said]
    ) -> None:
        self.host = host
        self._ssh = ssh
        self._python = python
        self.name = host.ssh_name.rpartition("@")[2]
        self.node_rank = node_rank
        self.code: int | None = None
        self._said = said
        self._words: list[str] = []
        self._process: subprocess.Popen[str]
        self._readers: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to connect; UsageError where there is no such program as ssh."""
        command = f"{shlex.quote(self._python)} -u -m manyhands.launch.remote"
        try:
            self._process = subprocess.Popen(
                [*shlex.split(self._ssh), *_SSH_OPTIONS, self.host.ssh_name, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        except OSError as error:
            raise UsageError(f"--ssh {self._ssh}: {error.strerror}; install OpenSSH, or name it") from None
        for read in (self._read_events, self._read_words):
            thread = threading.Thread(target=read, name=f"manyhands-{self.name}", daemon=True)
            thread.start()
            self._readers.append(thread)

    def send(self, line: str) -> None:
        """A line to its stdin; one to a connection that is gone is lost, and its end is in the queue."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def hang_up(self) -> None:
        """Close its stdin: it stops its ranks."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> int:
        """Cut the connection if it is still there; ssh's exit code."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.hang_up()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return self._process.returncode

    def lost(self) -> ManyhandsError:
        """Why its connection has ended before its task."""
        code = self._process.wait()
        self._readers[1].join()
        said = "; ".join(self._words[-_LAST_WORDS:]) or f"exit code {code}"
        if code == _SSH_FAILED and Path(shlex.split(self._ssh)[0]).name != _SSH:
            return Unreachable(f"{self.host.name} cannot be reached: {said}")
        if code == _SSH_FAILED:
            return Unreachable(
                f"ssh cannot reach {self.host.name} ({said}): try `{self._ssh} {self.host.ssh_name}` by hand; it must "
                "work without a question"
            )
        return RunFailed(f"the launcher on {self.host.name} ended with exit code {code}: {said}")

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = read_event(line)
            if event is not None:
                self._said.put((self, event))
        self._said.put((self, None))

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._words.append(line.rstrip())
            del self._words[:-_LAST_WORDS]
